"""Every image format that is read: how a file of it begins, and who finds the picture in it."""

from __future__ import annotations

from collections.abc import Callable

from bundle.containers import bmp, gif, jpeg, png, tiff, webp
from bundle.containers.picture import Picture
from bundle.errors import ImageError

_READERS: tuple[tuple[bytes, Callable[[bytes], Picture]], ...] = (
    (png.SIGNATURE, png.png_picture),
    (jpeg.SIGNATURE, jpeg.jpeg_picture),
    (webp.SIGNATURE, webp.webp_picture),
    (gif.SIGNATURE, gif.gif_picture),
    (bmp.SIGNATURE, bmp.bmp_picture),
    *((signature, tiff.tiff_picture) for signature in tiff.SIGNATURES),
)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded. Pillow reads more, some of it through external programs (EPS); those stay closed to strangers."""


def first_picture(data: bytes) -> Picture:
    """Return the first picture of an image file, not decoded; it takes milliseconds a megabyte, whatever the bytes are.

    Raises:
        ImageError: It is no file of `FORMATS`, its header is damaged, or it is cut into too many pieces.
    """
    for signature, reader in _READERS:
        if data.startswith(signature) and (signature != webp.SIGNATURE or data[8:12] == webp.FORM):
            return reader(data)
    raise ImageError(
        f"{len(data)} bytes beginning {data[:8]!r} are not an image that is read here; send one of {', '.join(FORMATS)}"
    )
