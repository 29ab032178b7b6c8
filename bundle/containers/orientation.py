"""How a picture is to be turned, read off its metadata and nothing else of that (EXIF 2.32, 4.6.4; XMP, part 2)."""

from __future__ import annotations

import re
import struct

UPRIGHT = 1
_TAG = 0x0112
_SIZE_OF_TYPE = {1: 1, 3: 2, 4: 4}
_ORDERS = {b"II": "<", b"MM": ">"}
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def orientation_of(exif: bytes, xmp: bytes) -> int:
    """Return 1 to 8; what EXIF says goes before what XMP says, and what cannot be read says nothing."""
    found = _in_exif(exif.removeprefix(b"Exif\0\0"))
    if found is None and (stated := _IN_XMP.search(xmp)):
        found = int(stated[1])
    return found if found is not None and 1 <= found <= 8 else UPRIGHT


def _in_exif(exif: bytes) -> int | None:
    """Return what the first directory of a TIFF block says; the last entry of the tag counts, as in Pillow."""
    order = _ORDERS.get(exif[:2])
    if order is None or len(exif) < 8:
        return None
    (start,) = struct.unpack_from(order + "I", exif, 4)
    if start + 2 > len(exif):
        return None
    (num_entries,) = struct.unpack_from(order + "H", exif, start)
    found = None
    for at in range(start + 2, min(start + 2 + 12 * num_entries, len(exif) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", exif, at)
        if tag == _TAG and kind in _SIZE_OF_TYPE:
            value = exif[at + 8 : at + 8 + _SIZE_OF_TYPE[kind]]
            found = int.from_bytes(value, "little" if order == "<" else "big")
    return found
