"""Decoded pixels of any mode to 8-bit RGB, as a person would see them.

Where transformers' `load_image` differs, it loses the picture: it drops alpha, which turns a drawing on a transparent
ground into one colour (most programs store that ground as black), and clips wide greyscale at 255, which turns it
white.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_GROUND = (255, 255, 255)
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_WIDE_INTEGERS = "I"
_FLOATS = "F"
_MOST_8_BITS, _MOST_16_BITS = 255.0, 65535.0
_TRANSPARENT = "transparency"
_KEYED = ("1", "L", "P", "RGB")
"""Modes of which Pillow makes alpha out of one transparent colour or entry of the palette."""

_HELD_BYTES = {
    "RGB": 4,
    **dict.fromkeys(("L", "P", "1"), 5),
    **dict.fromkeys(("CMYK", "YCbCr"), 8),
    "RGBA": 9,
    **dict.fromkeys(("I;16", "I;16B", "I;16L"), 10),
    **dict.fromkeys(("I", "F"), 21),
}
"""By mode, bytes for each pixel. Pillow keeps RGB in four; what is not RGB is held beside what is made of it."""
_HELD_BYTES_OF_OTHERS = 13
_HELD_BYTES_BY_WEBP = 12
_HELD_BYTES_BETWEEN_SCANS = 6
"""A progressive JPEG's coefficients, two bytes for each of three colours."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image as RGB, itself where it is that already: transparency on white, wide greyscale scaled to 8 bits.

    16 bits become their high byte (PNG, third edition, 13.12). Of 32 bits and of floats the range is the first of
    0 to 1 (floats), 0 to 255 and 0 to 65535 that holds every value, or else that of the values themselves.
    """
    if image.mode.startswith(_WIDE_INTEGERS) or image.mode == _FLOATS:
        return _from_wide(image)
    if image.mode in _WITH_ALPHA or (_TRANSPARENT in image.info and image.mode in _KEYED):
        return _on_ground(_with_alpha(image))
    image.info.pop(_TRANSPARENT, None)  # another mode's, which Pillow would warn of
    return image if image.mode == "RGB" else image.convert("RGB")


def held_bytes(image: Image.Image, num_scans: int) -> int:
    """Return what decoding an image that was only opened, and `to_rgb` of it, hold at most (measured with Pillow 12).

    Args:
        image: Its pixels are not read yet.
        num_scans: Times that decoding goes over all pixels.
    """
    per_pixel = _HELD_BYTES.get(image.mode, _HELD_BYTES_OF_OTHERS)
    if image.format == "WEBP":
        per_pixel += _HELD_BYTES_BY_WEBP
    elif image.mode in _KEYED and _TRANSPARENT in image.info:
        per_pixel += _HELD_BYTES["RGBA"]
    if num_scans > 1:
        per_pixel += _HELD_BYTES_BETWEEN_SCANS
    return per_pixel * image.width * image.height


def _with_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "RGBA":
        return image
    return image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")


def _on_ground(image: Image.Image) -> Image.Image:
    opaque = Image.new("RGB", image.size, _GROUND)
    opaque.paste(image, mask=image.getchannel("A"))
    return opaque


def _from_wide(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8) if values.dtype.itemsize == 2 else _scaled(values)
    key = image.info.get(_TRANSPARENT)
    if isinstance(key, int):
        grey[values == key] = _GROUND[0]
    return Image.fromarray(grey).convert("RGB")


def _scaled(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return values [H, W] of the range that holds them as bytes; what is not finite becomes black."""
    finite = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    least, most = float(finite.min()), float(finite.max())
    if least < 0 or most > _MOST_16_BITS:
        finite -= np.float32(least)
        top = most - least
    else:
        ranges = (1.0, _MOST_8_BITS, _MOST_16_BITS) if values.dtype.kind == "f" else (_MOST_8_BITS, _MOST_16_BITS)
        top = min(top for top in ranges if most <= top)
    if top != _MOST_8_BITS:
        finite = (finite * np.float32(_MOST_8_BITS / top)).round()
    return finite.clip(0, _MOST_8_BITS).astype(np.uint8)
