"""BMP: nothing is cut out, but the runs of a run-length one are bounded, which are read one by one in Python."""

from __future__ import annotations

import struct

from bundle.containers.picture import Picture, damaged
from bundle.errors import ImageError

SIGNATURE = b"BM"
_OLD_HEADER_BYTES = 12
_RUN_LENGTH = (1, 2)
_MOST_RUN_LENGTH_BYTES = 1 << 21
"""About 4 us for each two bytes: 4 s."""


def bmp_picture(data: bytes) -> Picture:
    """Return the picture of a BMP file.

    Raises:
        ImageError: The header is damaged, or the picture is run-length coded and too long.
    """
    if len(data) < 34:
        raise damaged("BMP", data, "it is cut short")
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes == _OLD_HEADER_BYTES:
        width, height = struct.unpack_from("<HH", data, 18)
        return Picture("BMP", width, height, data)
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    is_run_length = compression in _RUN_LENGTH
    if is_run_length and len(data) > _MOST_RUN_LENGTH_BYTES:
        raise ImageError(
            f"the run-length BMP holds {len(data)} bytes; at most {_MOST_RUN_LENGTH_BYTES} are read. Save it as PNG."
        )
    return Picture("BMP", width, abs(height), data, is_slow=is_run_length)
