"""Pictures that a user names on the command line, read from a file or fetched from the web by the user's own machine.

A server fetches under rules of its own; here nobody is protected from the user's own words, but from files without end
and from pages that are no pictures.
"""

from __future__ import annotations

import time
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from bundle.decode import DEFAULT_LIMITS
from bundle.errors import ImageError, MachineError
from bundle.machine import own_version

SILENCE_S = 15.0
"""A host that says nothing for so long is given up."""
_LONGEST_S = 60.0
_CHUNK_BYTES = 1 << 16
_SHOWN_CHARACTERS = 100
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def is_web_address(source: str) -> bool:
    """Say whether a picture is to be fetched."""
    return source.lower().startswith(("http://", "https://"))


def read_picture(source: str) -> bytes:
    """Return what a file or a web address holds, not yet decoded.

    Raises:
        MachineError: It cannot be read or fetched.
        ImageError: It is larger than what is decoded.
    """
    return fetched(source) if is_web_address(source) else read_file(source)


def read_file(name: str) -> bytes:
    """Return what an image file holds, not yet decoded.

    Raises:
        MachineError: It cannot be read, or is a pointer to a file elsewhere.
    """
    try:
        data = Path(name).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MachineError(f"{name[:_SHOWN_CHARACTERS]} cannot be read: {reason}") from error
    if data.startswith(_LFS_POINTER):
        raise MachineError(
            f"{name} is a Git LFS pointer, not the image that it stands for; fetch it with: git lfs pull"
        )
    return data


def fetched(url: str, max_bytes: int = DEFAULT_LIMITS.max_bytes, longest_s: float = _LONGEST_S) -> bytes:
    """Return what a web address answers; redirections are followed over HTTP alone.

    Args:
        url: http or https.
        max_bytes: One byte more is refused, whatever the answer's head says.
        longest_s: For the whole of it.

    Raises:
        MachineError: It does not answer, or with an error, or too slowly.
        ImageError: It is too large.
    """
    shown = url[:_SHOWN_CHARACTERS]
    end_s = time.monotonic() + longest_s
    headers = {"User-Agent": f"pocketvlm/{own_version()}", "Accept": "image/*"}
    try:
        with _opener().open(Request(url, headers=headers), timeout=SILENCE_S) as response:
            return _body(response, shown, max_bytes, end_s)
    except HTTPError as error:
        error.close()
        raise MachineError(f"{shown} answers {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise MachineError(f"{shown} does not answer within {SILENCE_S:g} s") from error
    except (URLError, HTTPException, OSError, ValueError) as error:
        raise MachineError(f"{shown} cannot be fetched: {getattr(error, 'reason', None) or error}") from error


def _opener() -> OpenerDirector:
    """Return what speaks HTTP and nothing else: the usual one would follow a redirection to FTP."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(),
        HTTPRedirectHandler(),
        HTTPDefaultErrorHandler(),
        HTTPErrorProcessor(),
        UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _body(response: HTTPResponse, shown: str, max_bytes: int, end_s: float) -> bytes:
    if (length := response.headers.get("Content-Length", "")).isdecimal() and int(length) > max_bytes:
        raise ImageError(f"{shown} holds {length} bytes; at most {max_bytes} are read")
    data = bytearray()
    while piece := response.read1(_CHUNK_BYTES):
        data += piece
        if len(data) > max_bytes:
            raise ImageError(f"{shown} holds more than {max_bytes} bytes, the most that are read")
        if time.monotonic() > end_s:
            raise MachineError(f"{shown} is too slow: {len(data)} bytes came in time")
    return bytes(data)
