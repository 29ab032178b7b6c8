"""The shipped model over HTTP, asked about several pictures and about videos, in a process of its own."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from PIL import Image, ImageDraw

from export.exporter import export_checkpoint

ROOT = Path(__file__).resolve().parents[3]
SIZE = (128, 128)
BOTH = "a large red circle and a large blue square"
TOKENS = 64

PROGRAM = """
import sys
from pathlib import Path
from serving.edge.serve import serve
from serving.settings import EngineSettings, ServerSettings
settings = ServerSettings(port=0, engine=EngineSettings(intra_threads=1))
serve([Path(each) for each in sys.argv[1:]], settings, lambda line: print(line, flush=True))
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server of the shipped model."""
    folder = tmp_path_factory.mktemp("shipped") / "vlm"
    export_checkpoint(ROOT / "reference" / "checkpoints" / "vlm", folder)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if " at http" not in line:
        process.kill()
        pytest.fail(f"the server said {line!r} and {process.communicate()[1]}")
    yield line.split(" at ")[1].split()[0]
    process.terminate()
    process.communicate(timeout=60)


def red_circle() -> Image.Image:
    image = Image.new("RGB", SIZE, "white")
    ImageDraw.Draw(image).ellipse((34, 34, 94, 94), fill="red")
    return image


def blue_square() -> Image.Image:
    image = Image.new("RGB", SIZE, "white")
    ImageDraw.Draw(image).rectangle((34, 34, 94, 94), fill="blue")
    return image


def encoded(form: str) -> bytes:
    """Return a file of the red circle and then the blue square."""
    frames = [red_circle(), blue_square()]
    if form == "mp4":
        return mp4(frames)
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:], duration=500)
    return file.getvalue()


def mp4(frames: list[Image.Image]) -> bytes:
    av = pytest.importorskip("av", reason="the extra video is not installed")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=2)
        (stream.width, stream.height), stream.pix_fmt = SIZE, "yuv420p"
        for each in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(each)))
        container.mux(stream.encode())
    return file.getvalue()


def data_url(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def png_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return data_url(file.getvalue(), "image/png")


def image_part(image: Image.Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": png_url(image)}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def ask(url: str, content: list[dict[str, Any]], **fields: Any) -> tuple[str, dict[str, int]]:
    """Return the answer and the details of the prompt's tokens."""
    body = {"model": "vlm", "messages": [{"role": "user", "content": content}], "max_tokens": 20, **fields}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"].strip(), answer.json()["usage"]["prompt_tokens_details"]


@pytest.mark.parametrize(
    ("question", "expected"), [("What color is the circle?", "red"), ("What shape is blue?", "square")]
)
def test_two_images_of_one_message_are_both_looked_at(url: str, question: str, expected: str) -> None:
    parts = [image_part(red_circle()), image_part(blue_square())]
    for content in ([*parts, text_part(question)], [parts[0], text_part(" "), parts[1], text_part(question)]):
        answer, details = ask(url, content)
        assert (answer, details["image_tokens"]) == (expected, 2 * TOKENS)


def videos() -> dict[str, dict[str, Any]]:
    """The same two frames, as clients write them."""
    urls = [png_url(red_circle()), png_url(blue_square())]
    return {
        "a GIF": {"type": "video_url", "video_url": {"url": data_url(encoded("GIF"), "image/gif")}},
        "a WebP": {"type": "video_url", "video_url": {"url": data_url(encoded("WEBP"), "image/webp")}},
        "an MP4": {"type": "video_url", "video_url": {"url": data_url(encoded("mp4"), "video/mp4")}},
        "a list": {"type": "video", "video": urls},
    }


@pytest.mark.parametrize("name", ["a GIF", "a WebP", "an MP4", "a list"])
def test_all_frames_of_a_video_are_looked_at_and_the_second_time_kept(url: str, name: str) -> None:
    part = videos()[name]
    answer, details = ask(url, [part, text_part("Describe the image.")])
    assert (answer, details["image_tokens"]) == (BOTH, 2 * TOKENS)
    again, details = ask(url, [part, text_part("Describe the image.")])
    assert (again, details["cached_image_tokens"]) == (BOTH, 2 * TOKENS)


def test_an_animation_sent_as_an_image_is_its_first_picture(url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(encoded("GIF"), "image/gif")}}
    answer, details = ask(url, [part, text_part("What color is the circle?")])
    assert (answer, details["image_tokens"]) == ("red", TOKENS)


@pytest.mark.parametrize(
    ("layout", "num_tokens"),
    [("uniform", 2 * TOKENS), ("image-grid", TOKENS), ("thumbnail-and-sampling", 3 * TOKENS)],
)
def test_a_layout_is_chosen_for_each_request(url: str, layout: str, num_tokens: int) -> None:
    _, details = ask(url, [videos()["a GIF"], text_part("How many shapes are there?")], video={"layout": layout})
    assert details["image_tokens"] == num_tokens


def test_pooled_frames_are_fewer_tokens_and_still_seen(url: str) -> None:
    options = {"layout": "progressive-pooling", "visual_tokens": 100}
    answer, details = ask(url, [videos()["a GIF"], text_part("What color is the circle?")], video=options)
    assert (answer, details["image_tokens"]) == ("red", 64 + 36)


SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}},
    "required": ["color"],
    "additionalProperties": False,
}
ASKED = [{"type": "text", "text": "What color is the circle?"}]


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = httpx.post(url + path, json={"model": "vlm", **body}, timeout=120)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_a_required_call_is_made_in_every_api(url: str) -> None:
    """The model knows no functions; what it must call, it calls with arguments of the schema."""
    shown = [image_part(red_circle()), *ASKED]
    function = {"name": "note", "parameters": SCHEMA}
    chat = post(
        url,
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": shown}],
            "max_tokens": 200,
            "tools": [{"type": "function", "function": function}],
            "tool_choice": {"type": "function", "function": {"name": "note"}},
        },
    )["choices"][0]
    [call] = chat["message"]["tool_calls"]
    assert (chat["finish_reason"], chat["message"]["content"]) == ("tool_calls", None)
    jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)

    source = {"type": "base64", "media_type": "image/png", "data": png_url(red_circle()).split(",")[1]}
    message = post(
        url,
        "/v1/messages",
        {
            "max_tokens": 200,
            "messages": [{"role": "user", "content": [{"type": "image", "source": source}, *ASKED]}],
            "tools": [{"name": "note", "input_schema": SCHEMA}],
            "tool_choice": {"type": "tool", "name": "note"},
        },
    )
    [use] = message["content"]
    assert message["stop_reason"] == "tool_use"
    assert use["input"] == json.loads(call["function"]["arguments"])

    parts = [
        {"type": "input_image", "image_url": png_url(red_circle())},
        {"type": "input_text", "text": ASKED[0]["text"]},
    ]
    response = post(
        url,
        "/v1/responses",
        {
            "input": [{"role": "user", "content": parts}],
            "max_output_tokens": 200,
            "tools": [{"type": "function", **function}],
            "tool_choice": {"type": "function", "name": "note"},
        },
    )
    [item] = response["output"]
    assert json.loads(item["arguments"]) == use["input"]


def test_every_api_says_the_same_of_a_picture_and_counts_the_same_tokens(url: str) -> None:
    shown = [image_part(red_circle()), *ASKED]
    messages = [{"role": "user", "content": shown}]
    chat = post(url, "/v1/chat/completions", {"messages": messages})
    said, num_tokens = chat["choices"][0]["message"]["content"], chat["usage"]["prompt_tokens"]
    assert said.strip() == "red"
    assert post(url, "/tokenize", {"messages": messages})["count"] == num_tokens
    source = {"type": "base64", "media_type": "image/png", "data": png_url(red_circle()).split(",")[1]}
    turns = [{"role": "user", "content": [{"type": "image", "source": source}, *ASKED]}]
    assert post(url, "/v1/messages", {"messages": turns, "max_tokens": 9})["content"][0]["text"] == said
    assert post(url, "/v1/messages/count_tokens", {"messages": turns}) == {"input_tokens": num_tokens}
    parts = [
        {"type": "input_image", "image_url": png_url(red_circle())},
        {"type": "input_text", "text": ASKED[0]["text"]},
    ]
    response = post(url, "/v1/responses", {"input": [{"role": "user", "content": parts}]})
    assert response["output"][0]["content"][0]["text"] == said


def test_a_text_is_gone_on_with_as_it_is(url: str) -> None:
    ids = post(url, "/tokenize", {"prompt": "a red <image>", "add_special_tokens": False})["tokens"]
    assert post(url, "/detokenize", {"tokens": ids}) == {"prompt": "a red <image>"}
    told = post(url, "/v1/completions", {"prompt": "a red", "max_tokens": 4, "logprobs": 1, "ignore_eos": True})
    assert told["usage"]["completion_tokens"] == 4
    assert len(told["choices"][0]["logprobs"]["tokens"]) == 4
