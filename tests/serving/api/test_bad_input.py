"""Whatever a caller sends: a clear error of the one form, and the next request is answered."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from serving.fake import FakeClient

CHAT = "/v1/chat/completions"


def huge_png(width: int, height: int) -> bytes:
    """Return a small file whose header announces a large image."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def noisy_png() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    return buffer.getvalue()


def url_of(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


BAD_IMAGES = {
    "not an image": url_of(b"these bytes are a text, not an image"),
    "truncated": url_of(noisy_png()[:200]),
    "20000x20000": url_of(huge_png(20000, 20000)),
    "zero bytes": "data:image/png;base64,",
    "not base64": "data:image/png;base64,@@@@",
    "base64 after its padding": "data:image/png;base64,AAA=AAAA",
    "another letter": url_of(noisy_png())[:100] + "é" + url_of(noisy_png())[100:],
    "cut base64": "data:image/png;base64,AAAAA",
    "no base64 mark": "data:image/png,AAAA",
    "no comma": "data:image/png;base64",
    "no image's media type": url_of(b"x", "text/html"),
    "svg": url_of(b"<svg/>", "image/svg+xml"),
    "http": "http://127.0.0.1/cat.png",
    "https": "HTTPS://example.com/cat.png",
    "file": "file:///etc/passwd",
    "path": "/etc/passwd",
    "empty": "",
}


@pytest.mark.parametrize("url", BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_image_is_a_400_and_the_next_is_answered(
    api: Any, ask: Callable[..., Any], url: str, stream: bool, png: bytes, image_part: Any
) -> None:
    response = api.post(CHAT, ask([{"type": "image_url", "image_url": {"url": url}}], stream=stream))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_image")
    assert len(error["message"]) < 300
    assert api.post(CHAT, ask([image_part(png)])).status_code == 200


@pytest.mark.parametrize("media_type", ["image/jpg", "image/jpeg", "IMAGE/PNG"])
def test_the_bytes_decide_what_an_image_is(api: Any, ask: Callable[..., Any], media_type: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url_of(noisy_png(), media_type)}}
    assert api.post(CHAT, ask([part])).status_code == 200


def test_a_single_pixel_is_an_image(api: Any, ask: Callable[..., Any], image_part: Any) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    assert api.post(CHAT, ask([image_part(buffer.getvalue())])).status_code == 200


def test_an_image_over_the_byte_limit_is_refused_before_it_is_decoded(
    make_caller: Any, ask: Callable[..., Any], image_part: Any
) -> None:
    api = make_caller(max_image_bytes=100)
    error = api.post(CHAT, ask([image_part(b"\0" * 101)])).json()["error"]
    assert "holds 101 bytes; at most 100" in error["message"]
    assert error["param"] == "messages.0.content.0.image_url.url"
    assert "not an image" in api.post(CHAT, ask([image_part(b"\0" * 100)])).text.lower()


TOOLS = [{"type": "function", "function": {"name": "a"}}]
ASKED = {"role": "user", "content": "a"}


def calling(arguments: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "a", "arguments": arguments}}


CALLING = {"role": "assistant", "content": None, "tool_calls": [calling("{}")]}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "a"}
BAD_CHATS: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "unknown model": ({"model": "nobody"}, 404, "model"),
    "a model that is no text": ({"model": 1}, 400, "model"),
    "another task's model": ({"model": "fake-clip"}, 400, "model"),
    "unknown field": ({"colour": 1}, 400, "colour"),
    "unsupported field": ({"functions": [{"name": "a"}]}, 400, "functions"),
    "a tool without its function": ({"tools": [{"type": "function"}]}, 400, "tools.0.function"),
    "another kind of tool": ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, 400, "tools.0.type"),
    "129 tools": ({"tools": [{"type": "function", "function": {"name": "a"}}] * 129}, 400, "tools"),
    "a tool with a name of two words": (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        400,
        "tools.0.function.name",
    ),
    "an unknown field of a function": (
        {"tools": [{"type": "function", "function": {"name": "a", "mood": 1}}]},
        400,
        "tools.0.function.mood",
    ),
    "arguments that are a list": (
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
        400,
        "tools.0.function.parameters",
    ),
    "two tools of one name": ({"tools": [{"type": "function", "function": {"name": "a"}}] * 2}, 400, "tools"),
    "an unknown way to choose": ({"tool_choice": "any"}, 400, "tool_choice"),
    "a call that is required of no tool": ({"tool_choice": "required"}, 400, "tool_choice"),
    "a tool that is not offered": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "b"}}},
        400,
        "tool_choice",
    ),
    "a result without its call": (
        {"messages": [{"role": "tool", "tool_call_id": "c", "content": "a"}]},
        400,
        "messages.0.tool_call_id",
    ),
    "a result that is there twice": ({"messages": [ASKED, CALLING, RESULT, RESULT]}, 400, "messages.3.tool_call_id"),
    "a call without its result": ({"messages": [ASKED, CALLING, ASKED]}, 400, "messages.2"),
    "a call at the end": ({"messages": [ASKED, CALLING]}, 400, "messages"),
    "arguments that are no JSON": (
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [calling("{")]}, RESULT]},
        400,
        "messages.1.tool_calls.0.function.arguments",
    ),
    "two calls of one id": (
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [calling("{}")] * 2}, RESULT]},
        400,
        "messages.1.tool_calls",
    ),
    "more choices as true": ({"n": True}, 400, "n"),
    "log probabilities as a number": ({"logprobs": 1}, 400, "logprobs"),
    "likeliest tokens without logprobs": ({"top_logprobs": 2}, 400, "top_logprobs"),
    "21 likeliest tokens": ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
    "a large penalty": ({"frequency_penalty": 2.1}, 400, "frequency_penalty"),
    "a small penalty": ({"presence_penalty": -2.1}, 400, "presence_penalty"),
    "no repetition factor": ({"repetition_penalty": 0}, 400, "repetition_penalty"),
    "a large repetition factor": ({"repetition_penalty": 2.5}, 400, "repetition_penalty"),
    "a share over 1": ({"min_p": 1.5}, 400, "min_p"),
    "fewer than no tokens": ({"min_tokens": -1}, 400, "min_tokens"),
    "a bias of a word": ({"logit_bias": {"cat": 1}}, 400, "logit_bias"),
    "a large bias": ({"logit_bias": {"1": 101}}, 400, "logit_bias"),
    "a stop token that is none": ({"stop_token_ids": [-1]}, 400, "stop_token_ids.0"),
    "nine choices": ({"n": 9}, 400, "n"),
    "no choice": ({"n": 0}, 400, "n"),
    "best of two": ({"best_of": 2}, 400, "best_of"),
    "an unknown format": ({"response_format": {"type": "xml"}}, 400, "response_format.type"),
    "a format without a schema": ({"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema"),
    "a schema that is a list": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": []}}},
        400,
        "response_format.json_schema.schema",
    ),
    "an unknown field of a schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "mood": 1}}},
        400,
        "response_format.json_schema.mood",
    ),
    "two structures": ({"guided_regex": "a", "guided_choice": ["a"]}, 400, "guided_choice"),
    "no structure": ({"structured_outputs": {}}, 400, "structured_outputs"),
    "two structures in one": ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, 400, "structured_outputs"),
    "no choice to choose from": ({"guided_choice": []}, 400, "guided_choice"),
    "an unknown contrast": ({"contrast": {"method": "opera"}}, 400, "contrast.method"),
    "a contrast of no method": ({"contrast": {"alpha": 1}}, 400, "contrast.method"),
    "a negative alpha": ({"contrast": {"method": "vcd", "alpha": -1}}, 400, "contrast.alpha"),
    "a step that no noise has": ({"contrast": {"method": "vcd", "noise_step": 1000}}, 400, "contrast.noise_step"),
    "one contrast's field for another": ({"contrast": {"method": "m3id", "beta": 0.1}}, 400, "contrast.beta"),
    "an empty choice": ({"guided_choice": [""]}, 400, "guided_choice.0"),
    "a schema that is no JSON": ({"guided_json": "{"}, 400, "guided_json"),
    "no messages": ({"messages": []}, 400, "messages"),
    "messages are no list": ({"messages": "hi"}, 400, "messages"),
    "a message without a role": ({"messages": [{"content": "a"}]}, 400, "messages.0.role"),
    "a message without content": ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
    "an unknown role": ({"messages": [{"role": "narrator", "content": "a"}]}, 400, "messages.0.role"),
    "an unknown field in a message": (
        {"messages": [{"role": "user", "content": "a", "mood": "me"}]},
        400,
        "messages.0.mood",
    ),
    "an unknown part": (
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        400,
        "messages.0.content.0.type",
    ),
    "a part without a type": ({"messages": [{"role": "user", "content": [{}]}]}, 400, "messages.0.content.0.type"),
    "an unsupported detail": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "", "detail": "huge"}}]}
            ]
        },
        400,
        "messages.0.content.0.image_url.detail",
    ),
    "an image by the system": (
        {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": ""}}]}]},
        400,
        "messages.0.content.0.type",
    ),
    "more tokens than the context": ({"messages": [{"role": "user", "content": "a " * 100}]}, 400, "messages"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens"),
    "a number as text": ({"max_tokens": "5"}, 400, "max_tokens"),
    "a boolean as number": ({"max_tokens": True}, 400, "max_tokens"),
    "hot": ({"temperature": 2.1}, 400, "temperature"),
    "cold": ({"temperature": -0.1}, 400, "temperature"),
    "no mass": ({"top_p": 0}, 400, "top_p"),
    "too much mass": ({"top_p": 1.1}, 400, "top_p"),
    "negative top_k": ({"top_k": -2}, 400, "top_k"),
    "a huge seed": ({"seed": 2**63}, 400, "seed"),
    "five stops": ({"stop": ["a"] * 5}, 400, "stop"),
    "an empty stop": ({"stop": ""}, 400, "stop"),
    "two limits": ({"max_tokens": 1, "max_completion_tokens": 2}, 400, "max_tokens"),
    "stream options without a stream": ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    "an unknown stream option": (
        {"stream": True, "stream_options": {"chunk": 1}},
        400,
        "stream_options.chunk",
    ),
}


@pytest.mark.parametrize(("fields", "status", "param"), BAD_CHATS.values(), ids=BAD_CHATS.keys())
def test_a_bad_chat_is_refused_by_the_fields_name(
    api: Any, engine: FakeClient, ask: Callable[..., Any], fields: dict[str, Any], status: int, param: str | None
) -> None:
    response = api.post(CHAT, {**ask(), **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert api.post(CHAT, ask()).status_code == 200
    assert engine.num_running == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"model": NaN, "messages": [1]}'],
    ids=["nothing", "cut", "null", "list", "text", "not utf-8", "deep", "NaN"],
)
def test_a_body_that_is_no_json_object_is_a_400(api: Any, ask: Callable[..., Any], content: bytes) -> None:
    response = api.request("POST", CHAT, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert api.post(CHAT, ask()).status_code == 200


CLASSIFY = {
    "model": "fake-clip",
    "images": [{"type": "image_url", "image_url": {"url": url_of(noisy_png())}}],
    "labels": ["a"],
}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        (CHAT, {"messages": [{"role": "system", "content": "\ud800"}]}, "messages.0.content"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}]},
            "messages.0.content.0.text",
        ),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "stop": "\ud800"}, "stop"),
        ("/v1/embeddings", {"model": "fake-clip", "input": ["a", "\ud800"]}, "input.1"),
        ("/v1/embeddings", {"model": "fake-clip", "input": [{"type": "text", "text": "\ud800"}]}, "input.0.text"),
        ("/v1/classify", {**CLASSIFY, "labels": ["\ud800"]}, "labels.0"),
        ("/v1/classify", {**CLASSIFY, "prompt_template": "\ud800 {}"}, "prompt_template"),
    ],
)
def test_half_a_surrogate_pair_is_a_400(api: Any, path: str, body: dict[str, Any], param: str) -> None:
    content = json.dumps({"model": "fake-vlm", **body})
    response = api.request("POST", path, content=content, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_json_under_another_content_type_is_a_400(api: Any, ask: Callable[..., Any]) -> None:
    response = api.request("POST", CHAT, content=json.dumps(ask()), headers={"Content-Type": "text/plain"})
    assert response.status_code == 400
    assert "application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", CHAT, 405)])
def test_a_wrong_path_or_method_has_the_one_error_form(api: Any, method: str, path: str, status: int) -> None:
    response = api.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


NAMES = st.sampled_from(
    ["model", "messages", "role", "content", "type", "text", "image_url", "url", "stream", "stop", "n", "x"]
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
LEAVES |= st.sampled_from(["fake-vlm", "user", "system", "text", "image_url", "data:image/png;base64,AAAA"])
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(NAMES, JSON) | JSON)
def test_no_json_breaks_the_server(api: Any, body: Any) -> None:
    for path in (CHAT, "/v1/embeddings", "/v1/classify"):
        response = api.post(path, body)
        assert response.status_code in (200, 400, 404)
        if response.status_code != 200:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def nested(levels: int) -> dict[str, Any]:
    return {"properties": {"a": nested(levels - 2)}} if levels > 1 else {}


UNWRITABLE = {"nested": nested(140), "half a surrogate pair": {"description": "\ud800"}}


@pytest.mark.parametrize("value", UNWRITABLE.values(), ids=UNWRITABLE)
@pytest.mark.parametrize("stream", [False, True])
def test_values_of_any_form_are_refused_where_they_could_not_be_told_again(
    make_caller: Any, tmp_path: Path, value: dict[str, Any], stream: bool
) -> None:
    api = make_caller(prefix_folder=tmp_path / "prefixes")
    schema = {"type": "json_schema", "name": "a", "schema": value}
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "grounding": value}]
    strict = {"type": "json_schema", "json_schema": {"name": "a", "schema": value}}
    bodies = {
        "text.format.schema": ("/v1/responses", {"input": "a", "text": {"format": schema}, "stream": stream}),
        "messages.1.grounding": ("/v1/prefixes", {"name": "a", "messages": said}),
        "response_format.json_schema.schema": (CHAT, {"messages": said[:1], "response_format": strict}),
        "metadata": ("/v1/responses", {"input": "a", "metadata": {"\ud800": "a"}, "stream": stream}),
    }
    for param, (path, fields) in bodies.items():
        content = json.dumps({"model": "fake-vlm", **fields})  # which writes half a pair as JSON can
        answer = api.request("POST", path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, (path, answer.text)
        assert answer.json()["error"]["param"] == param
