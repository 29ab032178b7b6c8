"""GIF 89a: the screen, its palette, and the first picture with the control block before it, or all."""

from __future__ import annotations

import re
import struct

from bundle.containers.animation import Animation, shown_ms
from bundle.containers.picture import Picture, check_pieces, damaged

SIGNATURE = b"GIF8"
_EXTENSION, _PICTURE, _TRAILER = b"!,;"
_INTRODUCER = re.compile(rb"[!,;]")
_CONTROL = 0xF9
_SCREEN_BYTES, _DESCRIPTOR_BYTES = 13, 10
_MOST_BLOCKS = 1 << 17
"""20 MiB in blocks of 255 bytes, the longest, are 82,241."""


def gif_picture(data: bytes) -> Picture:
    """Return the first picture of a GIF file.

    Raises:
        ImageError: No picture is found, or the file is cut into too many blocks.
    """
    if len(data) < _SCREEN_BYTES:
        raise damaged("GIF", data, "it is cut short")
    start = _SCREEN_BYTES + _palette_bytes(data[10])
    control, at = _before_picture(data, start)
    if at is None or at + _DESCRIPTOR_BYTES > len(data):
        raise damaged("GIF", data, "it holds no picture")
    left, top, width, height, flags = struct.unpack_from("<HHHHB", data, at + 1)
    pixels = at + _DESCRIPTOR_BYTES + _palette_bytes(flags) + 1
    end, is_whole = _blocks_end(data, pixels)
    alone = data[:start] + control + data[at:end] + (b";" if is_whole else b"")
    screen_width, screen_height = struct.unpack_from("<HH", data, 6)
    # A picture that reaches over the screen makes it larger, as in Pillow
    return Picture("GIF", max(screen_width, left + width), max(screen_height, top + height), alone)


def gif_animation(data: bytes) -> Animation:
    """Return all pictures of a GIF file.

    Raises:
        ImageError: There is none, one reaches beyond the others' canvas, or the file is cut into too many blocks.
    """
    first = gif_picture(data)
    width, height = first.width_px, first.height_px
    pieces, delays_ms = [data[: _SCREEN_BYTES + _palette_bytes(data[10])]], list[int]()
    at = len(pieces[0])
    while True:
        control, start = _before_picture(data, at)
        if start is None:
            if not _is_ended(data, at):
                raise damaged("GIF", data, f"it is cut short behind picture {len(delays_ms) - 1}")
            break
        if start + _DESCRIPTOR_BYTES > len(data):
            raise damaged("GIF", data, f"picture {len(delays_ms)} is cut short")
        left, top, of_width, of_height, flags = struct.unpack_from("<HHHHB", data, start + 1)
        if left + of_width > width or top + of_height > height:
            raise damaged("GIF", data, f"picture {len(delays_ms)} reaches beyond the canvas of {width}x{height}")
        at, is_whole = _blocks_end(data, start + _DESCRIPTOR_BYTES + _palette_bytes(flags) + 1)
        pieces += [control, data[start:at]]
        delays_ms.append(shown_ms(10 * int.from_bytes(control[4:6], "little")))
        check_pieces(len(delays_ms), "GIF pictures")
        if not is_whole:
            raise damaged("GIF", data, f"picture {len(delays_ms) - 1} is cut short")
    return Animation("GIF", width, height, b"".join([*pieces, b";"]), tuple(delays_ms))


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _before_picture(data: bytes, at: int) -> tuple[bytes, int | None]:
    """Return the last control block before the first picture, and where that begins; None where there is none."""
    control, num_found = b"", 0
    while found := _INTRODUCER.search(data, at):
        num_found += 1
        check_pieces(num_found, "GIF extensions")
        start = found.start()
        if data[start] != _EXTENSION:
            return control, start if data[start] == _PICTURE else None
        at, _ = _blocks_end(data, start + 2)
        if data[start + 1 : start + 2] == bytes((_CONTROL,)):
            control = data[start:at]
    return control, None


def _is_ended(data: bytes, at: int) -> bool:
    """Return whether a trailer, and no more than extensions before it, follows."""
    while (found := _INTRODUCER.search(data, at)) and data[found.start()] == _EXTENSION:
        at, _ = _blocks_end(data, found.start() + 2)
    return found is not None and data[found.start()] == _TRAILER


def _blocks_end(data: bytes, at: int) -> tuple[int, bool]:
    """Return where a run of blocks ends, its terminator included, and whether it has one."""
    num_blocks = 0
    while at < len(data):
        length = data[at]
        at += 1 + length
        if length == 0:
            return at, True
        num_blocks += 1
        check_pieces(num_blocks, "GIF blocks in one run", _MOST_BLOCKS)
    return len(data), False
