"""What the attackers send: bodies that are cheap to write and dear to read, small images that are much work."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    Body("50 MB", CHAT, _json(lambda chats, _: chat(chats, "a" * 50 * MB))),
)


def weighty_chat(model: str, seed: int) -> bytes:
    """Return a legal chat of 26 MB: a bitmap of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (2500, 2600, 3), np.uint8)
    content = [image_part(encoded(Image.fromarray(pixels), "BMP"), "bmp"), text_part("x")]
    return json.dumps(chat(model, content, max_tokens=1)).encode()


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
