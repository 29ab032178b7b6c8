"""PNG (third edition): header, palette, transparency and pixels are kept, of an animation its default image."""

from __future__ import annotations

import struct
import zlib

from bundle.containers.orientation import orientation_of
from bundle.containers.picture import Picture, check_pieces, damaged

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEPT = (b"IHDR", b"PLTE", b"tRNS")
_XMP, _RAW_EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"
_MOST_METADATA_BYTES = 1 << 16
"""Of a text once it is unpacked; what says how to turn the picture stands at its beginning."""


def png_picture(data: bytes) -> Picture:
    """Return the picture of a PNG file.

    Raises:
        ImageError: The header is damaged, or the file is cut into too many chunks.
    """
    kept, pixels, metadata = _chunks(data)
    header = kept[0] if kept else b""
    if header[:4] != b"IHDR" or len(header) < 12:
        raise damaged("PNG", data, "it does not begin with IHDR")
    width, height = struct.unpack_from(">II", header, 4)
    chunks = [*kept, *([b"IDAT" + b"".join(pixels)] if pixels else []), b"IEND"]
    alone = SIGNATURE + b"".join(map(_chunk, chunks))
    exif = metadata.get(b"eXIf") or _unhexed(metadata.get(_RAW_EXIF, b""))
    return Picture("PNG", width, height, alone, orientation_of(exif, metadata.get(_XMP, b"")))


def _chunks(data: bytes) -> tuple[list[bytes], list[bytes], dict[bytes, bytes]]:
    """Return the chunks that are kept (name and content), the pixels' contents, and metadata by name."""
    kept: list[bytes] = []
    pixels: list[bytes] = []
    metadata: dict[bytes, bytes] = {}
    at, num_chunks, are_pixels_over = len(SIGNATURE), 0, False
    while at + 8 <= len(data):
        num_chunks += 1
        check_pieces(num_chunks, "PNG chunks")
        (length,), name = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        content, at = data[at + 8 : at + 8 + length], at + 12 + length
        if name == b"IEND":
            break
        if name == b"IDAT":
            pixels += [] if are_pixels_over else [content]
            continue
        are_pixels_over = are_pixels_over or bool(pixels)
        if name in _KEPT and not pixels:
            kept.append(name + content)
        elif name == b"eXIf":
            metadata[name] = content
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            metadata.update(_orienting_text(name, content))
    return kept, pixels, metadata


def _chunk(named: bytes) -> bytes:
    return struct.pack(">I", len(named) - 4) + named + struct.pack(">I", zlib.crc32(named))


def _orienting_text(kind: bytes, content: bytes) -> dict[bytes, bytes]:
    """Return the text under its keyword where it may say how the picture is turned, else nothing."""
    keyword, _, rest = content[: _MOST_METADATA_BYTES * 2].partition(b"\0")
    if keyword not in (_XMP, _RAW_EXIF):
        return {}
    is_packed = kind == b"zTXt"
    if kind == b"iTXt":
        is_packed, rest = rest[:1] == b"\1", b"\0" + rest[2:].split(b"\0", 2)[-1]
    return {keyword: _unpacked(rest[1:]) if is_packed else rest.removeprefix(b"\0")}


def _unpacked(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, _MOST_METADATA_BYTES)
    except zlib.error:
        return b""


def _unhexed(profile: bytes) -> bytes:
    """Return ImageMagick's raw profile, "\\nexif\\n   LENGTH\\nHEX", as the bytes that it spells."""
    try:
        return bytes.fromhex(b"".join(profile.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""
