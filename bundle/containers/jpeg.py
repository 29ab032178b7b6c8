"""JPEG (ITU-T T.81): tables, frames, scans, and the two segments that tell its colours; of several pictures the first.

A progressive JPEG is decoded in scans, each of which walks every coefficient of the picture whether it changes it or
not; a scan may be 75 bytes long (libjpeg-turbo, "Two Issues with the JPEG Standard"; its djpeg has -maxscans for this).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from bundle.containers.orientation import orientation_of
from bundle.containers.picture import Picture, check_pieces, damaged

SIGNATURE = b"\xff\xd8\xff"
_MARKER_AFTER_DATA = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Ends the coded data of a scan: in it, 0xFF is a stuffed byte (00), a restart (D0-D7) or fill before a marker."""
_MARKER = re.compile(rb"\xff[^\x00\xff]")
"""Where a decoder that skips garbage finds the next marker."""
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_TABLES, _ADOBE, _JFIF, _APP1, _SCAN, _END = (0xDB, 0xC4, 0xCC, 0xDC, 0xDD), 0xEE, 0xE0, 0xE1, 0xDA, 0xD9
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_KEPT = frozenset({*_TABLES, _ADOBE, _JFIF, _SCAN, *_FRAMES})
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_MOST_SEGMENTS = 1 << 13
"""20 MiB of the longest segments are 320; tables and a scan of their own for each of 100 scans are 300."""


def jpeg_picture(data: bytes) -> Picture:
    """Return the first picture of a JPEG file, found as libjpeg finds it.

    Raises:
        ImageError: The header is damaged, or the file is cut into too many segments.
    """
    kept, size, num_scans = [b"\xff\xd8"], None, 0
    told = {_EXIF: b"", _XMP: b""}
    for num_segments, (marker, content) in enumerate(_segments(data)):
        check_pieces(num_segments, "JPEG segments", _MOST_SEGMENTS)
        if marker in _KEPT:
            kept += [bytes((0xFF, marker)), content]
        elif marker == _END:
            kept.append(b"\xff\xd9")
        elif marker == _APP1:
            told |= {name: content[2:] for name in told if not told[name] and content[2:].startswith(name)}
        num_scans += marker == _SCAN
        if marker in _FRAMES and len(content) >= 7 and size is None:
            size = int.from_bytes(content[5:7], "big"), int.from_bytes(content[3:5], "big")
    if size is None:
        raise damaged("JPEG", data, "it has no frame")
    return Picture("JPEG", *size, b"".join(kept), orientation_of(told[_EXIF], told[_XMP]), max(num_scans, 1))


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield markers and what follows each, up to the end of the first picture; a scan's coded data is its own."""
    at = len(SIGNATURE) - 1
    while found := _MARKER.search(data, at):
        marker, at = data[found.start() + 1], found.end()
        if marker in _WITHOUT_LENGTH:
            yield marker, b""
            continue
        if marker == _END:
            yield marker, b""
            return
        start, at = at, at + max(int.from_bytes(data[at : at + 2], "big"), 2)
        if marker == _SCAN:
            end = _MARKER_AFTER_DATA.search(data, at)
            at = len(data) if end is None else end.start()
        yield marker, data[start:at]
