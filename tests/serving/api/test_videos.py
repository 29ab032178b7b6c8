"""Videos as clients write them: the same part of the protocol, or a refusal that names the field."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from bundle.frames import opening
from bundle.frames.options import FrameOptions
from bundle.frames.table import LAYOUTS
from serving.fake import TOKENS_PER_IMAGE, FakeClient
from serving.protocol import VideoPart

CHAT = "/v1/chat/completions"


def picture(index: int, form: str = "JPEG", size: tuple[int, int] = (16, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (40 * index, 9, 9)).save(file, form)
    return file.getvalue()


def animation(form: str, num_frames: int = 12) -> bytes:
    frames = [Image.new("RGB", (16, 8), (20 * index, 9, 9)) for index in range(num_frames)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:], duration=500)
    return file.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64_of(data)}"


def vllm(address: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": address}}


FRAMES = [picture(index) for index in range(3)]
GIF = animation("GIF")
URLS = [url(frame, "image/jpeg") for frame in FRAMES]
LISTED = FrameOptions(list_fps=1.0)
JOINED = "data:video/jpeg;base64," + ",".join(map(base64_of, FRAMES))

WAYS: dict[str, tuple[dict[str, Any], tuple[bytes, ...], FrameOptions]] = {
    "a GIF": (vllm(url(GIF, "image/gif")), (GIF,), FrameOptions(num_frames=8)),
    "a GIF called a video": (vllm(url(GIF, "video/gif")), (GIF,), FrameOptions(num_frames=8)),
    "a file of unknown type": (vllm(url(GIF, "application/octet-stream")), (GIF,), FrameOptions(num_frames=8)),
    "JPEGs with commas": (vllm(JOINED), tuple(FRAMES), LISTED),
    "Qwen's list": ({"type": "video", "video": URLS}, tuple(FRAMES), LISTED),
    "Qwen's list at a rate": ({"type": "video", "video": URLS, "fps": 2}, tuple(FRAMES), FrameOptions(list_fps=2.0)),
    "Qwen's list, some of it": (
        {"type": "video", "video": URLS, "nframes": 2},
        tuple(FRAMES),
        FrameOptions(num_frames=2, list_fps=1.0),
    ),
    "Qwen's file": ({"type": "video", "video": url(GIF, "image/gif"), "fps": 2.0}, (GIF,), FrameOptions(fps=2.0)),
}


def shown(engine: FakeClient) -> VideoPart:
    """The one video of the last request."""
    (part,) = (each for each in engine.generations[-1].messages[0].parts if isinstance(each, VideoPart))
    return part


@pytest.mark.parametrize("name", WAYS)
def test_a_video_is_taken_as_clients_write_it(api: Any, engine: FakeClient, ask: Callable[..., Any], name: str) -> None:
    part, files, options = WAYS[name]
    response = api.post(CHAT, ask([part, {"type": "text", "text": "what"}]))
    assert response.status_code == 200, response.text
    assert shown(engine) == VideoPart(files, options)


SAMPLINGS: dict[str, tuple[dict[str, Any], FrameOptions]] = {
    "ours": ({"video": {"num_frames": 4}}, FrameOptions(num_frames=4)),
    "vLLM's": ({"media_io_kwargs": {"video": {"num_frames": 4}}}, FrameOptions(num_frames=4)),
    "all of vLLM's": ({"media_io_kwargs": {"video": {"num_frames": -1}}}, FrameOptions()),
    "a processor's": ({"mm_processor_kwargs": {"fps": 2.0, "do_sample_frames": True}}, FrameOptions(fps=2.0)),
    "two that agree": (
        {"video": {"num_frames": 4, "fps": 1.5}, "mm_processor_kwargs": {"num_frames": 4}},
        FrameOptions(num_frames=4, fps=1.5),
    ),
    "nothing": ({"video": {}, "media_io_kwargs": {"image": {}}}, FrameOptions(num_frames=8)),
    **{name: ({"video": {"layout": name}}, FrameOptions(layout=name, num_frames=8)) for name in LAYOUTS},
    "a budget": (
        {"video": {"layout": "progressive-pooling", "visual_tokens": 99}},
        FrameOptions(layout="progressive-pooling", num_frames=8, visual_tokens=99),
    ),
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_request_says_how_its_videos_are_looked_at(
    api: Any, engine: FakeClient, ask: Callable[..., Any], name: str
) -> None:
    fields, options = SAMPLINGS[name]
    response = api.post(CHAT, ask([vllm(url(GIF, "image/gif"))], **fields))
    assert response.status_code == 200, response.text
    assert shown(engine).options == options
    wanted = 12 if options.num_frames is None and options.fps is None else min(options.num_frames or 12, 12)
    if options.fps is not None:
        wanted = min(wanted, round(6 * options.fps))
    details = response.json()["usage"]["prompt_tokens_details"]
    num_tokens = TOKENS_PER_IMAGE * wanted
    told = {"image_tokens": num_tokens, "kept_image_tokens": num_tokens, "cached_image_tokens": 0}
    assert {name: details[name] for name in told} == told


REFUSED: dict[str, tuple[Any, dict[str, Any], str, str]] = {
    "an empty list": ({"type": "video", "video": []}, {}, "messages.0.content.0.video", "at least 1"),
    "no data URL": (vllm("https://example.com/a.mp4"), {}, "messages.0.content.0.video_url.url", "no remote"),
    "a picture": (vllm(url(FRAMES[0], "image/jpeg")), {}, "messages.0.content.0.video_url.url", "is no video's"),
    "no base64": (vllm("data:video/mp4;base64,@@"), {}, "messages.0.content.0.video_url.url", "not base64"),
    "nothing in it": (vllm("data:video/mp4;base64,"), {}, "messages.0.content.0.video_url.url", "video is empty"),
    "a frame that is empty": (vllm(JOINED + ","), {}, "messages.0.content.0.video_url.url", "image is empty"),
    "a list of videos": (
        {"type": "video", "video": [url(GIF, "video/mp4")]},
        {},
        "messages.0.content.0.video.0",
        "is no image's",
    ),
    "fields that differ": (
        vllm(JOINED),
        {"video": {"num_frames": 2}, "mm_processor_kwargs": {"num_frames": 3}},
        "video.num_frames",
        "video.num_frames = 2, mm_processor_kwargs.num_frames = 3: they differ",
    ),
    "a part that differs": (
        {"type": "video", "video": URLS, "nframes": 2},
        {"video": {"num_frames": 3}},
        "messages.0.content.0.nframes",
        "asks for num_frames = 3",
    ),
    "no such layout": (vllm(JOINED), {"video": {"layout": "spiral"}}, "video.layout", "one of uniform"),
    "a budget of none": (vllm(JOINED), {"video": {"visual_tokens": 9}}, "video.visual_tokens", "takes what its frames"),
    "no frames": (vllm(JOINED), {"video": {"num_frames": 0}}, "video.num_frames", "1 frame at least"),
    "frames below nothing": (vllm(JOINED), {"video": {"num_frames": -2}}, "video.num_frames", "-1"),
    "no rate": (vllm(JOINED), {"video": {"fps": 0}}, "video.fps", "greater than or equal to 0.00001"),
    "a rate of no video": ({"type": "video", "video": URLS, "fps": 1e-30}, {}, "messages.0.content.0.fps", "0.00001"),
    "an unknown option": (vllm(JOINED), {"video": {"stride": 2}}, "video.stride", "unknown or not supported"),
    "a part's rate": ({"type": "video", "video": URLS, "fps": -1}, {}, "messages.0.content.0.fps", "0.00001"),
    "no URL": ({"type": "video", "video": [URLS[0], 5]}, {}, "messages.0.content.0.video.1", "valid string"),
    "no video": ({"type": "video"}, {}, "messages.0.content.0.video", "required"),
    "an unknown part": (
        {"type": "video", "video": URLS, "max_pixels": 9},
        {},
        "messages.0.content.0.max_pixels",
        "unknown",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_its_field(api: Any, ask: Callable[..., Any], name: str) -> None:
    part, fields, param, message = REFUSED[name]
    response = api.post(CHAT, ask([part], **fields))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert message in error["message"]


def test_frames_are_counted_before_one_is_decoded(make_caller: Any, ask: Callable[..., Any]) -> None:
    api = make_caller(max_frames=3, video_frames=2, max_videos=2)
    many = {
        "JPEGs": (vllm("data:video/jpeg;base64," + "@," * 9_999 + "@"), "10000 frames; one request may hold 3"),
        "a list": ({"type": "video", "video": ["data:,"] * 10_000}, "10000 frames; one request may hold 3"),
    }
    for part, message in many.values():
        error = api.post(CHAT, ask([part])).json()["error"]
        assert message in error["message"], error
    two = [vllm(url(GIF, "image/gif"))] * 2
    assert "4 frames; one request may hold 3" in api.post(CHAT, ask(two)).json()["error"]["message"]
    three = api.post(CHAT, ask([vllm(url(GIF, "image/gif"))] * 3)).json()["error"]["message"]
    assert "3 videos; one request may hold 2" in three
    assert api.post(CHAT, ask([vllm(JOINED)])).status_code == 200
    whole = api.post(CHAT, ask([vllm(url(GIF, "image/gif"))], video={"num_frames": -1})).json()["error"]
    assert "make 12 frames to look at; at most 3" in whole["message"]


def test_bytes_of_a_list_count_together(make_caller: Any, ask: Callable[..., Any]) -> None:
    api = make_caller(max_video_bytes=len(FRAMES[0]) * 2)
    assert "together" in api.post(CHAT, ask([vllm(JOINED)])).json()["error"]["message"]
    assert "video holds" in api.post(CHAT, ask([vllm(url(GIF * 9, "image/gif"))])).json()["error"]["message"]


def test_a_video_is_no_content_of_a_system_message_nor_an_embedding(api: Any, ask: Callable[..., Any]) -> None:
    chat = ask()
    chat["messages"].insert(0, {"role": "system", "content": [vllm(JOINED)]})
    assert api.post(CHAT, chat).json()["error"]["param"] == "messages.0.content.0.type"
    body = {"model": "fake-clip", "messages": [{"role": "user", "content": [vllm(JOINED)]}]}
    assert api.post("/v1/embeddings", body).status_code == 400


def test_an_mp4_without_its_extra_is_415_and_says_what_installs_it(
    api: Any, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    response = api.post(CHAT, ask([vllm(url(b"\0\0\0\x18ftypisom" + bytes(12), "video/mp4"))]))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (415, "not_installed")
    assert ".[video]" in error["message"]
