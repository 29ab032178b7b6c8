"""What the attackers send: bodies that are cheap to write and dear to read, small images that are much work."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image
from wire import CHAT, CLASSIFY, EMBEDDINGS

MB = 1_000_000
LARGE_PX = 7000
"""49 megapixels: just under what is decoded by default."""


@dataclass(frozen=True)
class Body:
    """One hostile body.

    Attributes:
        name: In the table.
        path: Where it is posted.
        make: From the ids of the model that chats and the one that embeds.
        is_quick: Small enough for the suite that runs each time.
    """

    name: str
    path: str
    make: Callable[[str, str], bytes]
    is_quick: bool = False


def text_part(text: str) -> dict[str, Any]:
    """Return a piece of text, as the API takes it."""
    return {"type": "text", "text": text}


def image_part(data: bytes, kind: str = "png") -> dict[str, Any]:
    """Return an image, as the API takes it."""
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def video_part(data: bytes, kind: str = "video/mp4") -> dict[str, Any]:
    """Return a video, as the API takes it; the bytes decide what it is."""
    return {"type": "video_url", "video_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def frames_part(frames: Sequence[bytes]) -> dict[str, Any]:
    """Return a list of frames, as the API takes it."""
    return {"type": "video", "video": [image_part(frame)["image_url"]["url"] for frame in frames]}


def mp4(frames: Iterable[Image.Image], codec: str = "libx264", **options: str) -> bytes:
    """Return pictures as an MP4."""
    import av

    pictures, file = iter(frames), io.BytesIO()
    first = next(pictures)
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height = first.size
        stream.pix_fmt = "yuv420p"
        for picture in chain([first], pictures):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return file.getvalue()


def chat(model: str, content: Any, **fields: Any) -> dict[str, Any]:
    """Return a greedy chat of one message."""
    message = {"role": "user", "content": content}
    return {"model": model, "messages": [message], "max_tokens": 8, "temperature": 0, **fields}


def long_chat(model: str, seed: int, max_tokens: int = 1500, **fields: Any) -> dict[str, Any]:
    """Return a chat whose answer takes seconds from a model that never ends by itself."""
    return chat(model, f"go {seed}", max_tokens=max_tokens, **{"temperature": 1.0, "seed": seed, **fields})


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return an image as a file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def small_png(seed: int = 0) -> bytes:
    """Return an image of noise, different for each seed."""
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)), "PNG")


def large_png(seed: int = 0) -> bytes:
    """Return 49 megapixels of one colour: 160 KB, of which 147 MB are made."""
    return encoded(Image.new("RGB", (LARGE_PX, LARGE_PX), (seed % 256, seed // 256 % 256, 3)), "PNG")


def jpeg_of_many_scans(num_extra: int, side_px: int = LARGE_PX) -> bytes:
    """Return a progressive JPEG whose last scan is there `num_extra` times more: each walks over the whole image.

    ITU-T T.81, G.1.2: a progressive scan may refine any band again, and a decoder goes through all of its blocks.
    """
    data = encoded(Image.new("L", (side_px, side_px), 128), "JPEG", progressive=True, quality=50)
    start, end = _last_scan(data)
    return data[:end] + data[start:end] * num_extra + data[end:]


def _last_scan(data: bytes) -> tuple[int, int]:
    """Return where the last scan of a JPEG begins and ends."""
    place, scan = 2, (0, 0)
    while data[place + 1] != 0xD9:  # end of image
        start, marker = place, data[place + 1]
        place += 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
        if marker == 0xDA:  # start of scan: entropy-coded bytes follow, up to a marker that is none of theirs
            while data[place] != 0xFF or data[place + 1] in (0, *range(0xD0, 0xD8)):
                place += 1
            scan = (start, place)
    return scan


def _raw(text: str) -> Callable[[str, str], bytes]:
    """Return a maker that puts the models' ids for $CHAT and $EMBED."""
    return lambda chats, embeds: text.replace("$CHAT", chats).replace("$EMBED", embeds).encode()


def _json(make: Callable[[str, str], Any]) -> Callable[[str, str], bytes]:
    return lambda chats, embeds: json.dumps(make(chats, embeds)).encode()


def _repeated(before: str, item: str, count: int, after: str) -> Callable[[str, str], bytes]:
    return lambda chats, embeds: _raw(before + ",".join([item] * count) + after)(chats, embeds)


def _labels(count: int) -> Callable[[str, str], bytes]:
    """Return a classification whose last label is there twice."""
    labels = [f"l{index}" for index in range(count)]
    return _json(lambda _, embeds: {"model": embeds, "images": [image_part(b"x")], "labels": [*labels, labels[-1]]})


def _commas(count: int) -> dict[str, Any]:
    """Return a video of so many frames, each of nothing."""
    return {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64" + "," * count}}


_EMPTY = '{"role":"user","content":""}'
_CHAT_OF = '{"model":"$CHAT","messages":['

BODIES: Sequence[Body] = (
    Body("40,000 labels, one twice", CLASSIFY, _labels(40_000), is_quick=True),
    Body(
        "300,000 numbers to embed",
        EMBEDDINGS,
        _repeated('{"model":"$EMBED","input":[', "1", 300_000, "]}"),
        is_quick=True,
    ),
    Body("300,000 numbers for messages", CHAT, _repeated(_CHAT_OF, "1", 300_000, "]}"), is_quick=True),
    Body("1,000,000 numbers for messages", CHAT, _repeated(_CHAT_OF, "1", MB, "]}")),
    Body(
        "200,000 unknown fields",
        CHAT,
        _json(lambda chats, _: {**chat(chats, "x"), **{f"f{index}": 1 for index in range(200_000)}}),
        is_quick=True,
    ),
    Body("10,000,000 empty lists", CHAT, _repeated("[", "[]", 10 * MB, "]")),
    Body("50,000 empty messages", CHAT, _repeated(_CHAT_OF, _EMPTY, 50_000, "]}"), is_quick=True),
    Body("200,000 empty messages", CHAT, _repeated(_CHAT_OF, _EMPTY, 200_000, "]}")),
    Body("950,000 empty messages", CHAT, _repeated(_CHAT_OF, _EMPTY, 950_000, "]}")),
    Body(
        "300,000 empty parts",
        CHAT,
        _repeated(_CHAT_OF + '{"role":"user","content":[', '{"type":"text","text":""}', 300_000, "]}]}"),
    ),
    Body(
        "300,000 empty parts to embed",
        EMBEDDINGS,
        _repeated('{"model":"$EMBED","input":[', '{"type":"text","text":""}', 300_000, "]}"),
    ),
    Body("10 MB of text", CHAT, _json(lambda chats, _: chat(chats, "a" * 10 * MB))),
    Body("10 MB of text to embed", EMBEDDINGS, _json(lambda _, embeds: {"model": embeds, "input": "a" * 10 * MB})),
    Body("30 MB of escapes", CHAT, lambda chats, _: json.dumps(chat(chats, "\x01" * 5 * MB)).encode()),
    Body("30 MB for a model's name", CHAT, _json(lambda *_: chat("m" * 30 * MB, "x"))),
    Body("30 MB for a field's name", CHAT, _json(lambda chats, _: {**chat(chats, "x"), "f" * 30 * MB: 1})),
    Body("30 MB of digits", CHAT, lambda *_: b'{"seed":' + b"9" * 30 * MB + b"}"),
    Body("30 MB of white space", CHAT, lambda *_: b" " * 30 * MB),
    Body("brackets 100,000 deep", CHAT, lambda *_: b"[" * 100_000 + b"]" * 100_000, is_quick=True),
    Body(
        "brackets 900 deep, 10,000 times", CHAT, lambda *_: b"[" + b",".join([b"[" * 900 + b"]" * 900] * 10_000) + b"]"
    ),
    Body("200,000 stops", CHAT, _json(lambda chats, _: chat(chats, "x", stop=["s"] * 200_000)), is_quick=True),
    Body("30 MB of a data URL that is none", CHAT, _json(lambda chats, _: chat(chats, [image_part(b"A" * 22 * MB)]))),
    Body("500 images", CHAT, _json(lambda chats, _: chat(chats, [image_part(small_png())] * 500)), is_quick=True),
    Body(
        "10,000 frames with commas",
        CHAT,
        _json(lambda chats, _: chat(chats, [_commas(10_000)])),
        is_quick=True,
    ),
    Body(
        "10,000 frames in a list",
        CHAT,
        _json(lambda chats, _: chat(chats, [frames_part([b"x"] * 10_000)])),
        is_quick=True,
    ),
    Body("20 MB of commas", CHAT, _json(lambda chats, _: chat(chats, [_commas(20 * MB)]))),
    Body("500 videos", CHAT, _json(lambda chats, _: chat(chats, [video_part(b"x")] * 500)), is_quick=True),
    Body("50 MB", CHAT, _json(lambda chats, _: chat(chats, "a" * 50 * MB))),
)


def weighty_chat(model: str, seed: int) -> bytes:
    """Return a legal chat of 26 MB: a bitmap of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (2500, 2600, 3), np.uint8)
    content = [image_part(encoded(Image.fromarray(pixels), "BMP"), "bmp"), text_part("x")]
    return json.dumps(chat(model, content, max_tokens=1)).encode()


def tables_of(data: bytes, box: bytes, offset: int, form: str, *values: int) -> bytes:
    """Return an MP4 with numbers written into a box of its tables, `offset` behind the box's name."""
    changed = bytearray(data)
    struct.pack_into(form, changed, data.index(box, data.index(b"moov")) + 4 + offset, *values)
    return bytes(changed)


def costly_videos() -> dict[str, Callable[[], dict[str, Any]]]:
    """Return videos that are cheap to send and dear to decode, or say so: name -> how its part is made."""

    def still(count: int, size: tuple[int, int]) -> Iterable[Image.Image]:
        picture = Image.new("RGB", size, (9, 90, 200))
        return (picture for _ in range(count))

    def animation(kind: str, count: int, side_px: int) -> bytes:
        first, second = (
            Image.new("L", (side_px, side_px), 200 * index) for index in range(2)
        )  # equal neighbours are merged
        return encoded(first, kind, save_all=True, append_images=[second, first] * (count // 2), duration=50)

    def few() -> bytes:
        return mp4(still(3, (64, 48)))

    def dear(count: int, size: tuple[int, int]) -> bytes:
        return mp4(still(count, size), "libx264", g="100000", preset="ultrafast")

    return {
        "MP4 that says 64,000 x 64,000": lambda: video_part(tables_of(few(), b"avc1", 24, ">HH", 64000, 64000)),
        "MP4 that says 2 billion frames": lambda: video_part(tables_of(few(), b"stsz", 4, ">II", 1, 2**31 - 1)),
        "MP4 of 30 MP that says 64 x 48": lambda: video_part(
            tables_of(mp4(still(2, (7680, 4000)), preset="ultrafast"), b"avc1", 24, ">HH", 64, 48)
        ),
        "MP4 of 9,000 frames, one of them whole": lambda: video_part(dear(9000, (640, 360))),
        "MP4 of 600 frames in 4K, one of them whole": lambda: video_part(dear(600, (4096, 2304))),
        "GIF of 2,000 frames of 0.5 MP": lambda: video_part(animation("GIF", 2000, 700), "image/gif"),
        "WebP of 40 frames of 5 MP": lambda: video_part(animation("WEBP", 40, 2200), "image/webp"),
        "64 frames of 49 MP": lambda: frames_part([large_png()] * 64),
    }


def costly_images() -> dict[str, tuple[str, Callable[[], bytes]]]:
    """Return images that are cheap to send and dear to decode: name -> media type and how it is made."""
    side = (LARGE_PX, LARGE_PX)
    frames = [Image.new("P", (64, 64), index % 256) for index in range(2000)]
    return {
        "49 MP PNG": ("png", large_png),
        "49 MP PNG with alpha": ("png", lambda: encoded(Image.new("RGBA", side, (1, 2, 3, 4)), "PNG")),
        "49 MP GIF": ("gif", lambda: encoded(Image.new("P", side), "GIF")),
        "49 MP WebP": ("webp", lambda: encoded(Image.new("RGB", side, (9, 9, 9)), "WEBP", lossless=True)),
        "49 MP TIFF of floats": ("tiff", lambda: encoded(Image.new("F", side), "TIFF", compression="tiff_lzw")),
        "49 MP JPEG in CMYK": ("jpeg", lambda: encoded(Image.new("CMYK", side), "JPEG")),
        "GIF of 2,000 frames": ("gif", lambda: encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])),
        "49 MP JPEG of 200 scans": ("jpeg", lambda: jpeg_of_many_scans(200)),
    }
