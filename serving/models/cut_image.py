"""Encoded bytes to the 8-bit images that an encoder's tiles are made of, and a digest of their pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from PIL import Image

from bundle.decode import ImageHead, decode_image, inspect_image
from bundle.image import ImageSpec

_BAND_PX = 64
"""Rows of an image that are hashed at a time."""


@dataclass(frozen=True)
class CutImage:
    """A decoded image in the smaller of two forms.

    Attributes:
        digest: SHA-256 over its size and pixels.
        width_px: Of the whole, upright image.
        height_px: Of the whole, upright image.
        images: Its tiles where they are smaller than it (a photograph of 12 megapixels is 36 MB), else it alone. RGB.
        is_cut: `images` are the tiles.
    """

    digest: bytes
    width_px: int
    height_px: int
    images: tuple[Image.Image, ...]
    is_cut: bool


def cut_image(spec: ImageSpec, data: bytes) -> CutImage:
    """Return an image decoded, and cut where that makes it smaller or the geometry wants it.

    Raises:
        ImageError: The bytes are not an image, or one over the limits.
        OutOfMemoryError: This machine lacks memory for it.
    """
    image = decode_image(data)
    is_smaller = spec.layout(*image.size).num_pixels(spec.tile_size_px) < image.width * image.height
    is_cut = is_smaller or spec.geometry.is_cut_at_once
    images = tuple(spec.cut(image)) if is_cut else (image,)
    return CutImage(pixel_digest(image), *image.size, images, is_cut)


def pixel_digest(image: Image.Image) -> bytes:
    """Return the SHA-256 over an RGB image's size and pixels."""
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    for top in range(0, image.height, _BAND_PX):  # the bytes of a whole image at once are two more copies of it
        digest.update(image.crop((0, top, image.width, min(top + _BAND_PX, image.height))).tobytes())
    return digest.digest()


def cut_if_cheap(spec: ImageSpec, data: bytes) -> CutImage | ImageHead:
    """Return an image as `cut_image` does where that takes milliseconds whatever its bytes are, else its head.

    Raises:
        ImageError: The bytes are not an image, or one over the limits.
        OutOfMemoryError: This machine lacks memory for it.
    """
    head = inspect_image(data)
    return cut_image(spec, data) if head.is_cheap else head
