"""Small videos, made by Pillow and PyAV."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image


def frame(index: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A picture whose red grows with its index: 8 for each."""
    pixels = np.full((size[1], size[0], 3), (8 * index % 256, 60, 200), np.uint8)
    pixels[: size[1] // 2, : size[0] // 2, 1] = 180
    return Image.fromarray(pixels)


def animation(form: str, frames: Sequence[Image.Image], delay_ms: int | list[int] = 100) -> bytes:
    file = io.BytesIO()
    options: dict[str, Any] = {"lossless": True, "minimize_size": False} if form == "WEBP" else {}
    frames[0].save(file, form, save_all=True, append_images=list(frames[1:]), duration=delay_ms, loop=0, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def make_frame() -> Callable[..., Image.Image]:
    return frame


@pytest.fixture(scope="session")
def make_animation() -> Callable[..., bytes]:
    return animation


@pytest.fixture(scope="session")
def make_mp4(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """The function that encodes pictures as an MP4."""
    av = pytest.importorskip("av", reason="the extra video is not installed")

    def make(
        frames: Sequence[Image.Image], fps: int = 10, codec: str = "libx264", movflags: str = "", **options: str
    ) -> bytes:
        file = tmp_path_factory.mktemp("mp4") / "video.mp4"  # its tables are put to the front in a second pass
        with av.open(str(file), "w", format="mp4", options={"movflags": movflags} if movflags else {}) as container:
            stream = container.add_stream(codec, rate=fps, options=options)
            stream.width, stream.height = frames[0].size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for each in frames:
                container.mux(stream.encode(av.VideoFrame.from_image(each)))
            container.mux(stream.encode())
        return file.read_bytes()

    return make
