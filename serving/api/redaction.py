"""What of a request is written down: its texts and fields, and of images, keys and signed URLs what tells them."""

from __future__ import annotations

import hashlib
from typing import Any

from bundle.errors import ImageError
from serving.api.images import decoded, is_data, split_data_url
from serving.api.remote_urls import is_remote

_SECRET_FIELDS = frozenset(
    {"api_key", "apikey", "api-key", "x-api-key", "authorization", "password", "secret", "token", "access_token"}
)
HIDDEN = "[redacted]"
_DIGEST = "sha256:"
_PARAM = "body"


def redacted(value: Any, *, keeps_images: bool) -> Any:
    """Return a body without what is not to be written.

    Args:
        value: As JSON was read.
        keeps_images: Leave images and videos as they are; else each becomes its digest.
    """
    if isinstance(value, dict):
        is_base64 = value.get("type") == "base64" and not keeps_images
        return {name: _field(name, each, is_base64, keeps_images) for name, each in value.items()}
    if isinstance(value, list):
        return [redacted(each, keeps_images=keeps_images) for each in value]
    return _text(value, keeps_images) if isinstance(value, str) else value


def _field(name: str, value: Any, is_base64: bool, keeps_images: bool) -> Any:
    if name.lower() in _SECRET_FIELDS and isinstance(value, str):
        return HIDDEN
    if is_base64 and name == "data" and isinstance(value, str):
        return _told(value, "base64")
    return redacted(value, keeps_images=keeps_images)


def _text(text: str, keeps_images: bool) -> str:
    if not keeps_images and is_data(text):
        try:
            media_type, payload = split_data_url(text, _PARAM)
        except ImageError:
            return _told(text, "")
        return _told(payload, media_type)
    if ("?" in text or "@" in text) and is_remote(text):  # what signs a URL, or a name and a password in it
        scheme, _, rest = text.strip().partition(":")
        place = rest.lstrip("/").partition("?")[0].partition("#")[0]
        return f"{scheme}://{place.rpartition('@')[2]}?{HIDDEN}"
    return text


def _told(payload: str, media_type: str) -> str:
    """Return what tells a file: the digest of its bytes, as sha256sum prints it, its type and size."""
    try:
        data = decoded(payload, _PARAM, len(payload) + 1)
    except ImageError:
        data = payload.encode("utf-8", "surrogatepass")
    return f"{_DIGEST}{hashlib.sha256(data).hexdigest()} {media_type or 'unknown'} {len(data)} bytes"
