"""TIFF 6.0 and BigTIFF: nothing is cut out; strips and tiles, which are read one by one in Python, are bounded."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bundle.containers.picture import Picture, check_pieces, damaged
from bundle.errors import ImageError

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WIDTH, _HEIGHT, _COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 259, 322, 323
_PIECES = (273, 324)
"""StripOffsets, TileOffsets."""
_SIZE_OF_TYPE = {1: 1, 3: 2, 4: 4, 16: 8}
_PLAIN = (1, 5, 8, 32773, 32946)
"""Uncompressed, LZW, Deflate (twice), PackBits: a pixel is decoded once. A JPEG in a strip may have 100 scans."""
_FEW_PIECES = 1 << 10
_MOST_TILE_PIXELS = 1 << 26


@dataclass(frozen=True)
class _Entry:
    """One entry of a directory: how many values, and the first of them where it lies in the entry itself."""

    count: int
    value: int


def tiff_picture(data: bytes) -> Picture:
    """Return the first picture of a TIFF file; a decoder turns it itself.

    Raises:
        ImageError: The directory is damaged, or the picture is cut into too many strips or tiles, or too large ones.
    """
    try:
        entries = _directory(data)
    except struct.error as error:
        raise damaged("TIFF", data, "its directory is cut short") from error
    if _WIDTH not in entries or _HEIGHT not in entries:
        raise damaged("TIFF", data, "it gives no width and height")
    num_pieces = max((entries[tag].count for tag in _PIECES if tag in entries), default=1)
    check_pieces(num_pieces, "TIFF strips or tiles")
    none = _Entry(1, 1)
    tile = entries.get(_TILE_WIDTH, none).value, entries.get(_TILE_HEIGHT, none).value
    if tile[0] * tile[1] > _MOST_TILE_PIXELS:
        raise ImageError(f"the TIFF's tiles are {tile[0]}x{tile[1]} pixels; at most {_MOST_TILE_PIXELS} are decoded.")
    is_slow = num_pieces > _FEW_PIECES or entries.get(_COMPRESSION, none).value not in _PLAIN
    return Picture("TIFF", entries[_WIDTH].value, entries[_HEIGHT].value, data, is_slow=is_slow)


def _directory(data: bytes) -> dict[int, _Entry]:
    """Return the first directory's entries by tag; the last of a tag counts, as in Pillow."""
    order = "<" if data[:2] == b"II" else ">"
    if data[2:4] in (b"+\0", b"\0+"):
        (start,) = struct.unpack_from(order + "Q", data, 8)
        (num_entries,), start, length, form = struct.unpack_from(order + "Q", data, start), start + 8, 20, "HHQ"
    else:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (num_entries,), start, length, form = struct.unpack_from(order + "H", data, start), start + 2, 12, "HHI"
    check_pieces(num_entries, "TIFF entries")
    entries: dict[int, _Entry] = {}
    for at in range(start, start + num_entries * length, length):
        tag, kind, count = struct.unpack_from(order + form, data, at)
        value_at = at + struct.calcsize(order + form)
        value = data[value_at : value_at + _SIZE_OF_TYPE.get(kind, 0)]
        entries[tag] = _Entry(count, int.from_bytes(value, "little" if order == "<" else "big"))
    return entries
