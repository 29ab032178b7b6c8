"""Data URLs to encoded image bytes. Nothing is fetched, and nothing is decoded here but base64."""

from __future__ import annotations

import base64
import binascii

from bundle.errors import ImageError
from serving.protocol import ImagePart

MEDIA_TYPES = ("image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif", "image/bmp", "image/tiff")
"""What a data URL may call itself; the bytes decide. "image/jpg" is no registered name, and what many clients write."""
_BASE64 = ";base64"
_SHOWN_CHARACTERS = 60


def image_part(url: str, param: str, max_bytes: int) -> ImagePart:
    """Return the image of a data URL.

    Args:
        url: `data:image/png;base64,...`.
        param: The request field, for the error.
        max_bytes: Of the encoded image.

    Raises:
        ImageError: Not a data URL, not base64, not an image's media type, empty, or too large.
    """
    header, comma, payload = url.partition(",")
    scheme, colon, kind = header.partition(":")
    if not colon or scheme.lower() != "data":
        raise ImageError(_refusal(url), param)
    if not comma or not kind.lower().endswith(_BASE64):
        raise ImageError(f"{_shown(url)} is not a base64 data URL; send data:image/png;base64,... ", param)
    media_type = kind[: -len(_BASE64)].lower()
    if media_type not in MEDIA_TYPES:
        raise ImageError(f"media type {_shown(media_type)} is not one of {', '.join(MEDIA_TYPES)}", param)
    return ImagePart(_decode(payload, param, max_bytes))


def _decode(payload: str, param: str, max_bytes: int) -> bytes:
    if (size_bytes := len(payload) * 3 // 4 - payload[-2:].count("=")) > max_bytes:
        raise ImageError(f"the image holds {size_bytes} bytes; at most {max_bytes} are taken. Scale it down.", param)
    try:
        data = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"the data URL's payload is not base64 without line breaks: {error}", param) from error
    if not data:
        raise ImageError("the image is empty (0 bytes)", param)
    return data


def _refusal(url: str) -> str:
    if url.lower().startswith(("http:", "https:")):
        return f"{_shown(url)}: this server fetches no remote images. Send the bytes: data:image/png;base64,..."
    return f"{_shown(url)} is not a data URL; send data:image/png;base64,..."


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")
