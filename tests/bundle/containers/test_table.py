"""A file is cut down to its first picture at a price that its bytes bound, whatever they are."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from time import process_time

import numpy as np
import pytest
from PIL import Image

from bundle.containers.table import FORMATS, first_picture
from bundle.decode import ImageLimits, decode_image, inspect_image
from bundle.errors import ImageError

MEGABYTES = 6
"""Of the attacks below; all are repetitions, so that more of them cost proportionally more."""
MOST_CPU_S = 5.0
"""Each took 10 to 60 s of a reader's time at this size; refusing or skipping takes less than half a second."""


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _png_chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _repeated(piece: bytes, num_bytes: int = MEGABYTES << 20) -> bytes:
    return piece * (num_bytes // len(piece))


def _behind(data: bytes, at: int, more: bytes) -> bytes:
    return data[:at] + more + data[at:]


PICTURE = Image.radial_gradient("L").resize((61, 40)).convert("RGB")
PNG, JPEG, WEBP = (_encoded(PICTURE, form) for form in ("PNG", "JPEG", "WEBP"))
GIF = _encoded(PICTURE.quantize(8), "GIF")
GIF_SCREEN = 13 + (3 << (GIF[10] & 7) + 1)
PNG_HEADER, PNG_PIXELS = 33, PNG.index(b"IDAT") - 4
_BOMB = b"a\0\0" + zlib.compress(bytes(900_000))


def _run_length_bmp(runs: bytes, side_px: int = 5000) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, side_px, side_px, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + header + bytes(1024) + runs


def _tiff(*entries: tuple[int, int, int, int], tail: bytes = b"") -> bytes:
    listed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + listed + bytes(4) + tail


def _striped_tiff(num_strips: int) -> bytes:
    """A strip for each row of 1,000 pixels, all of them in one place of the file."""
    where = 8 + 2 + 9 * 12 + 4
    counts, pixels = where + 4 * num_strips, where + 8 * num_strips
    sizes = [(256, 4, 1, 1000), (257, 4, 1, num_strips), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    strips = [(273, 4, num_strips, where), (278, 4, 1, 1), (279, 4, num_strips, counts)]
    lists = struct.pack("<I", pixels) * num_strips + struct.pack("<I", 1000) * num_strips
    return _tiff(*sizes, *strips, tail=lists + bytes(1000))


REFUSED: dict[str, Callable[[], bytes]] = {
    "PNG, empty chunks before the pixels": lambda: _behind(PNG, PNG_HEADER, _repeated(_png_chunk(b"abCd"))),
    "PNG, empty chunks behind the pixels": lambda: _behind(PNG, len(PNG) - 12, _repeated(_png_chunk(b"abCd"))),
    "PNG, empty pixels": lambda: _behind(PNG, PNG_PIXELS, _repeated(_png_chunk(b"IDAT"))),
    "PNG, texts": lambda: _behind(PNG, PNG_HEADER, _repeated(_png_chunk(b"tEXt", b"a\0b"))),
    "JPEG, comments": lambda: _behind(JPEG, 2, _repeated(b"\xff\xfe\0\2")),
    "JPEG, tables": lambda: _behind(JPEG, 2, _repeated(b"\xff\xc4\0\2")),
    "JPEG, restarts": lambda: _behind(JPEG, 2, _repeated(b"\xff\xd0")),
    "GIF, comment of single bytes": lambda: _behind(GIF, GIF_SCREEN, b"\x21\xfe" + _repeated(b"\1a") + b"\0"),
    "GIF, empty comments": lambda: _behind(GIF, GIF_SCREEN, _repeated(b"\x21\xfe\0")),
    "WebP, empty chunks": lambda: WEBP[:12] + _repeated(b"ABCD\0\0\0\0"),
    "BMP, runs": lambda: _run_length_bmp(_repeated(b"\1\5")),
    "TIFF, strips": lambda: _striped_tiff(100_000),
    "TIFF, huge tiles": lambda: _tiff((256, 4, 1, 9), (257, 4, 1, 9), (322, 4, 1, 65536), (323, 4, 1, 65536)),
    "TIFF, no size": lambda: _tiff((259, 3, 1, 1)),
    "PNG, no header": lambda: PNG[:8] + PNG[PNG_HEADER:],
    "JPEG, no frame": lambda: JPEG[:20] + b"\xff\xd9",
    "WebP, no bitstream": lambda: WEBP[:12],
    "GIF, no picture": lambda: GIF[:GIF_SCREEN] + b";",
    "BMP, no header": lambda: b"BM" + bytes(8),
}
SKIPPED: dict[str, Callable[[], bytes]] = {
    "PNG, packed texts": lambda: _behind(PNG, PNG_HEADER, _png_chunk(b"zTXt", _BOMB) * 1000),
    "PNG, packed profiles": lambda: _behind(PNG, PNG_HEADER, _png_chunk(b"iCCP", _BOMB) * 1000),
    "JPEG, fill": lambda: _behind(JPEG, 2, _repeated(b"\xff")),
    "JPEG, long comments": lambda: _behind(JPEG, 2, _repeated(b"\xff\xfe\xff\xff" + bytes(65533))),
    "GIF, long comment": lambda: _behind(GIF, GIF_SCREEN, b"\x21\xfe" + _repeated(b"\xff" + bytes(255)) + b"\0"),
    "GIF, garbage": lambda: _behind(GIF, GIF_SCREEN, bytes(MEGABYTES << 20)),
    "WebP, trailing chunks": lambda: WEBP + _repeated(b"ABCD\0\0\0\0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_file_of_too_many_pieces_is_refused_in_little_time(name: str) -> None:
    data = REFUSED[name]()
    start = process_time()
    with pytest.raises(ImageError, match=r"more than \d+ |at most \d+|header is damaged|no picture"):
        inspect_image(data)
    assert process_time() - start < MOST_CPU_S


@pytest.mark.parametrize("name", SKIPPED)
def test_what_makes_no_pixels_is_passed_over_in_little_time(name: str) -> None:
    plain = {"PNG": PNG, "JPEG": JPEG, "GIF": GIF, "WebP": WEBP}[name.split(",", maxsplit=1)[0]]
    data = SKIPPED[name]()
    start = process_time()
    found = decode_image(data)
    assert process_time() - start < MOST_CPU_S
    np.testing.assert_array_equal(np.asarray(found), np.asarray(decode_image(plain)))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_head_and_pixels_are_those_that_pillow_finds_in_the_whole_file(form: str, mode: str) -> None:
    if form == "JPEG" and mode in ("P", "RGBA"):
        pytest.skip("JPEG has no palette and no alpha")
    data = _encoded(PICTURE.convert(mode), form)
    picture = first_picture(data)
    alone = Image.open(BytesIO(picture.data))
    whole = Image.open(BytesIO(data))
    assert (picture.format, picture.width_px, picture.height_px) == (whole.format, *whole.size)
    np.testing.assert_array_equal(np.asarray(alone.convert("RGBA")), np.asarray(whole.convert("RGBA")))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd"])
def test_tiff_that_may_go_over_its_pixels_often_is_not_cheap(compression: str) -> None:
    data = _encoded(PICTURE, "TIFF", compression=compression)
    assert inspect_image(data).is_cheap == (compression not in ("jpeg", "zstd"))
    assert decode_image(data).size == PICTURE.size


def test_tiff_of_many_strips_is_decoded_and_not_cheap() -> None:
    data = _striped_tiff(2000)
    assert not inspect_image(data).is_cheap
    assert decode_image(data).size == (1000, 2000)


def test_run_length_bmp_is_decoded_and_not_cheap() -> None:
    data = _run_length_bmp(b"\x32\1\0\0" * 50 + b"\0\1", side_px=50)
    assert not inspect_image(data).is_cheap
    assert decode_image(data).size == (50, 50)


def test_two_sizes_in_one_file_are_refused() -> None:
    other = _encoded(Image.new("RGB", (3, 3)), "PNG")[8:PNG_HEADER]
    with pytest.raises(ImageError, match="two places give its size"):
        decode_image(_behind(PNG, PNG_HEADER, other))


def test_picture_larger_than_the_screen_of_a_gif_counts_with_its_own_size() -> None:
    data = bytearray(GIF)
    struct.pack_into("<HH", data, 6, 1, 1)
    assert (inspect_image(bytes(data)).width_px, inspect_image(bytes(data)).height_px) == (61, 40)
    assert decode_image(bytes(data)).size == (61, 40)
    with pytest.raises(ImageError, match="61x40"):
        inspect_image(bytes(data), ImageLimits(max_pixels=100))


def test_damaged_metadata_turns_nothing() -> None:
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"no exif at all"):
        data = _behind(JPEG, 2, b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif)
        assert decode_image(data).size == PICTURE.size
