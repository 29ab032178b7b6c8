"""URLs to encoded image bytes. Nothing is decoded here but base64; remote ones are `serving.api.remote_images`'.

A URL is read as browsers read it (RFC 2397 and WHATWG's forgiving base64): parameters, no media type, line breaks,
percent signs and missing padding are taken, and the URL-safe alphabet as well, which some libraries write.
"""

from __future__ import annotations

import base64
import binascii
import string
from collections.abc import Iterator

from bundle.errors import ImageError
from bundle.image.geometry import Box
from serving.api.remote_urls import is_remote, remote_data
from serving.api.validation import shown
from serving.protocol import ImagePart

_MARK = "base64"
UNKNOWN_TYPES = ("", "application/octet-stream", "binary/octet-stream")
"""What a program writes that does not know the media type; the bytes decide."""
_VECTOR = "image/svg"
_MOST_HEADER_CHARACTERS = 1 << 12
"""Before a data URL's comma: a media type and its parameters, each of which becomes a string of its own."""
_SLICE_CHARACTERS = 1 << 20
"""Decoded at once: 5 ms, in which no other thread runs."""
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_WHITESPACE = string.whitespace.encode()
_PERCENT = tuple((f"%{ord(each):02X}", each) for each in "+/=\r\n -_")
"""How the characters of base64, and whitespace, are written with percent signs."""


def image_part(url: str, param: str, max_bytes: int, box: Box | None = None) -> ImagePart:
    """Return the image of a URL.

    Args:
        url: `data:image/png;base64,...`, or one that leads elsewhere, where images are fetched.
        param: The request field, for the error.
        max_bytes: Of the encoded image.
        box: As of `ImagePart`.

    Raises:
        ImageError: Not a data URL, not base64, not an image's media type, empty, or too large.
    """
    if is_remote(url):
        return ImagePart(remote_data(url, param), box)
    media_type, payload = split_data_url(url, param)
    is_image = media_type.startswith("image/") and not media_type.startswith(_VECTOR)
    if not is_image and media_type not in UNKNOWN_TYPES:
        raise ImageError(f"media type {shown(media_type)} is no image's; send a PNG, JPEG or WebP", param)
    return ImagePart(decoded(payload, param, max_bytes), box)


def is_data(url: str) -> bool:
    """Return whether a URL is one of data, which holds what it names."""
    return url.lstrip()[:5].lower() == "data:"


def split_data_url(url: str, param: str) -> tuple[str, str]:
    """Return a data URL's media type, in small letters, and its base64, not decoded.

    Raises:
        ImageError: It is no data URL, or not in base64.
    """
    if not is_data(url):
        raise ImageError(_refusal(url), param)
    header, comma, payload = url.partition(",")
    if len(header) > _MOST_HEADER_CHARACTERS:
        raise ImageError(
            f"{shown(url)} holds {len(header)} characters before its first comma; a data URL has at most "
            f"{_MOST_HEADER_CHARACTERS} there: data:image/png;base64,...",
            param,
        )
    kind = header.strip().partition(":")[2]
    media_type, *parameters = [each.strip().lower() for each in kind.split(";")]
    if not comma or _MARK not in parameters:
        raise ImageError(f"{shown(url)} is not a base64 data URL; send data:image/png;base64,... ", param)
    return media_type, payload


def decoded(payload: str, param: str, max_bytes: int, noun: str = "image") -> bytes:
    """Return the bytes of base64 as people write it.

    Args:
        payload: The base64.
        param: The request field, for the error.
        max_bytes: Of the bytes.
        noun: What they are, for the error.

    Raises:
        ImageError: Not base64, empty, or too large.
    """
    if "%" in payload:
        payload = _without_percent(payload)
    digits, _, rest = payload.partition("=")
    try:
        if rest.strip("=" + string.whitespace):
            raise binascii.Error("there are characters after the padding")
        data = b"".join(_pieces(digits, param, max_bytes, noun))
    except ValueError as error:
        raise ImageError(f"the data URL's payload is not base64: {error}", param) from error
    if not data:
        raise ImageError(f"the {noun} is empty (0 bytes)", param)
    return data


def _pieces(digits: str, param: str, max_bytes: int, noun: str) -> Iterator[bytes]:
    """Yield the bytes of base64 without padding, a slice at a time: nothing else runs while one is decoded."""
    left, room_bytes = b"", max_bytes
    for start in range(0, len(digits) + 1, _SLICE_CHARACTERS):
        is_last = start + _SLICE_CHARACTERS > len(digits)
        piece = digits[start : start + _SLICE_CHARACTERS].encode("ascii")
        left += piece.translate(_TO_STANDARD, _WHITESPACE)
        whole = len(left) if is_last else len(left) // 4 * 4
        data = base64.b64decode(left[:whole] + b"=" * (-whole % 4), validate=True)
        left, room_bytes = left[whole:], room_bytes - len(data)
        if room_bytes < 0:
            size_bytes = len(digits) * 3 // 4
            raise ImageError(
                f"the {noun} holds {size_bytes} bytes; at most {max_bytes} are taken. Scale it down.", param
            )
        yield data


def _without_percent(payload: str) -> str:
    for code, character in _PERCENT:
        payload = payload.replace(code, character).replace(code.lower(), character)
    return payload


def _refusal(url: str) -> str:
    if is_remote(url):
        return f"{shown(url)}: no remote videos are fetched. Send the bytes: data:video/mp4;base64,..."
    return f"{shown(url)} is not a data URL; send data:image/png;base64,..."
