"""How often a JPEG goes over its pixels, counted without decoding any.

A progressive JPEG is decoded in scans, each of which walks every coefficient of the image whether it changes it or not;
a scan may be 75 bytes long (libjpeg-turbo, "Two Issues with the JPEG Standard"; its djpeg has -maxscans for this).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_MARKER_AFTER_DATA = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Ends the coded data of a scan: in it, 0xFF is a stuffed byte (00), a restart (D0-D7) or fill before a marker."""
_MARKER = re.compile(rb"\xff[^\x00\xff]")
"""Where a decoder that skips garbage finds the next marker."""
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_END, _SCAN = 0xD9, 0xDA


def num_scans(data: bytes) -> int:
    """Return how many scans the first image of a JPEG file has."""
    return sum(marker == _SCAN for marker in _markers(data))


def _markers(data: bytes) -> Iterator[int]:
    """Yield the markers up to the end of the first image, found as libjpeg finds them."""
    at, search = 2, _MARKER
    while found := search.search(data, at):
        marker, at = data[found.start() + 1], found.end()
        if marker == _END:
            return
        yield marker
        search = _MARKER_AFTER_DATA if marker == _SCAN else _MARKER
        if marker not in _WITHOUT_LENGTH:
            at += max(int.from_bytes(data[at : at + 2], "big"), 2)
