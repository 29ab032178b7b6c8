"""WebP (RFC 9649): the bitstream with its alpha, of an animation the first frame on its canvas, or all."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from bundle.containers.animation import Animation, shown_ms
from bundle.containers.orientation import orientation_of
from bundle.containers.picture import Picture, check_pieces, damaged

SIGNATURE = b"RIFF"
FORM = b"WEBP"
_BITSTREAMS = (b"VP8 ", b"VP8L")
_KEPT = (*_BITSTREAMS, b"VP8X", b"ALPH", b"ANIM")
_ALPHA_OR_ANIMATED = 0x12
"""Of VP8X's flags; the others promise metadata."""
_FRAME_HEADER_BYTES = 16


def webp_picture(data: bytes) -> Picture:
    """Return the picture of a WebP file.

    Raises:
        ImageError: The header is damaged, or the file is cut into too many chunks.
    """
    kept: dict[bytes, bytes] = {}
    for name, chunk in _chunks(data, 12):
        kept.setdefault(name, chunk)
        if name in _BITSTREAMS and b"VP8X" not in kept:
            break
    size = _size(kept)
    if size is None:
        raise damaged("WEBP", data, "it has neither VP8X, VP8 nor VP8L at its beginning")
    body = FORM + b"".join(_pictured(name, chunk) for name, chunk in kept.items())
    alone = SIGNATURE + struct.pack("<I", len(body)) + body
    exif, xmp = (kept.get(name, b"")[8:] for name in (b"EXIF", b"XMP "))
    return Picture("WEBP", *size, alone, orientation_of(exif, xmp))


def webp_animation(data: bytes) -> Animation:
    """Return all frames of a WebP file; a still one is a frame that is shown for the time of one.

    Raises:
        ImageError: The header is damaged, a frame is cut short or reaches beyond the canvas, or there are too many.
    """
    still = webp_picture(data)
    promised = 8 + int.from_bytes(data[4:8], "little")
    if promised > len(data) + 1:  # some writers leave out the byte that makes the last chunk even
        raise damaged("WEBP", data, f"it is cut short: its header promises {promised} bytes")
    frames = [chunk for name, chunk in _chunks(data, 12) if name == b"ANMF"]
    if not frames:
        return Animation("WEBP", still.width_px, still.height_px, still.data, (shown_ms(0),))
    kept = {name: chunk for name, chunk in _chunks(data, 12) if name in (b"VP8X", b"ANIM")}
    delays_ms = []
    for index, frame in enumerate(frames):
        if len(frame) < 8 + int.from_bytes(frame[4:8], "little") or len(frame) < 8 + _FRAME_HEADER_BYTES:
            raise damaged("WEBP", data, f"frame {index} is cut short")
        left, top, width, height, delay_ms = (int.from_bytes(frame[at : at + 3], "little") for at in range(8, 23, 3))
        if 2 * left + width + 1 > still.width_px or 2 * top + height + 1 > still.height_px:
            raise damaged("WEBP", data, f"frame {index} reaches beyond the canvas")
        delays_ms.append(shown_ms(delay_ms))
    body = FORM + b"".join(_pictured(name, chunk) for name, chunk in kept.items())
    body += b"".join(_pictured(b"ANMF", frame) for frame in frames)
    alone = SIGNATURE + struct.pack("<I", len(body)) + body
    return Animation("WEBP", still.width_px, still.height_px, alone, tuple(delays_ms))


def _chunks(data: bytes, start: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and bytes, name and length included, of each chunk."""
    at = num_chunks = 0
    at = start
    while at + 8 <= len(data):
        num_chunks += 1
        check_pieces(num_chunks, "WebP chunks")
        (length,) = struct.unpack_from("<I", data, at + 4)
        end = at + 8 + length + length % 2
        yield data[at : at + 4], data[at:end]
        at = end


def _pictured(name: bytes, chunk: bytes) -> bytes:
    """Return a chunk as far as it makes the picture."""
    if name == b"VP8X" and len(chunk) > 8:
        return chunk[:8] + bytes((chunk[8] & _ALPHA_OR_ANIMATED,)) + chunk[9:]
    if name == b"ANMF":
        inner = [each for part, each in _chunks(chunk, 8 + _FRAME_HEADER_BYTES) if part in _KEPT]
        content = chunk[8 : 8 + _FRAME_HEADER_BYTES] + b"".join(inner)
        return name + struct.pack("<I", len(content)) + content
    return chunk if name in _KEPT else b""


def _size(chunks: dict[bytes, bytes]) -> tuple[int, int] | None:
    """Return (width, height) of the canvas, or of the bitstream where there is none."""
    if len(canvas := chunks.get(b"VP8X", b"")) >= 18:
        return int.from_bytes(canvas[12:15], "little") + 1, int.from_bytes(canvas[15:18], "little") + 1
    if len(lossy := chunks.get(b"VP8 ", b"")) >= 18:
        width, height = struct.unpack_from("<HH", lossy, 14)
        return width & 0x3FFF, height & 0x3FFF
    if len(lossless := chunks.get(b"VP8L", b"")) >= 13:
        (bits,) = struct.unpack_from("<I", lossless, 9)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None
