"""Bytes from strangers become an image or an ImageError, at a bounded price."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from bundle.decode import ImageLimits, decode_image, inspect_image
from bundle.errors import ImageError
from bundle.rgb import held_bytes

ROOT = Path(__file__).parents[2]


def _encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no such pixels: a pixel bomb's header."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = b"IDAT" + zlib.compress(b"\0" * 1000)
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (body, rows)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _with_more_scans(progressive: bytes, num_more: int) -> bytes:
    """A progressive JPEG whose last scan stands there so many times more; it is the same picture."""
    last, end = progressive.rindex(b"\xff\xda"), progressive.rindex(b"\xff\xd9")
    return progressive[:end] + progressive[last:end] * num_more + progressive[end:]


PICTURE = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
FILES = {
    "PNG": _encoded(PICTURE),
    "JPEG": _encoded(PICTURE, "JPEG"),
    "WEBP": _encoded(PICTURE, "WEBP"),
    "GIF": _encoded(PICTURE.quantize(16), "GIF"),
    "BMP": _encoded(PICTURE, "BMP"),
    "TIFF": _encoded(PICTURE, "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("form", FILES)
def test_every_listed_format_is_decoded(form: str) -> None:
    assert decode_image(FILES[form]).size == (40, 30)


def test_no_bytes_are_refused() -> None:
    with pytest.raises(ImageError, match="0 bytes"):
        decode_image(b"")


def test_bytes_that_are_no_image_are_refused_with_the_formats_that_are_read() -> None:
    with pytest.raises(ImageError, match="PNG, JPEG, WEBP"):
        decode_image(b"<html>not found</html>")


def test_formats_that_run_programs_are_refused() -> None:
    with pytest.raises(ImageError, match="not an image that is read here"):
        decode_image(_encoded(PICTURE, "EPS"))


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.8])
def test_truncated_file_is_refused_with_its_size(form: str, part: float) -> None:
    data = FILES[form][: int(len(FILES[form]) * part)]
    with pytest.raises(ImageError, match=rf"{len(data)} bytes"):
        decode_image(data)


def test_truncated_photograph_names_its_pixels(photograph_files: dict[str, Path]) -> None:
    data = photograph_files["china"].read_bytes()
    with pytest.raises(ImageError, match="JPEG image of 640x427 pixels is damaged or truncated"):
        decode_image(data[: len(data) // 2])


def test_file_over_the_byte_limit_is_refused_with_both_numbers() -> None:
    data = FILES["PNG"]
    with pytest.raises(ImageError, match=rf"{len(data)} bytes; at most {len(data) - 1}"):
        decode_image(data, ImageLimits(max_bytes=len(data) - 1))
    assert decode_image(data, ImageLimits(max_bytes=len(data))).size == (40, 30)


def test_image_over_the_pixel_limit_is_refused_before_its_pixels_are_decoded() -> None:
    with pytest.raises(ImageError, match=r"8000x7000 = 56000000 pixels; at most 50000000"):
        decode_image(_png_header(8000, 7000))


@pytest.mark.parametrize("size", [(9500, 9500), (20_000, 20_000)], ids=["pillow warns", "pillow refuses"])
def test_pixel_bomb_is_refused_without_a_warning(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="pixels"):
        decode_image(_png_header(*size))


def test_pixel_limit_cannot_be_set_above_pillow_s() -> None:
    assert Image.MAX_IMAGE_PIXELS == 89_478_485
    with pytest.raises(ValidationError, match="89478485"):
        ImageLimits(max_pixels=89_478_486)


def test_strip_that_would_grow_when_scaled_is_refused() -> None:
    with pytest.raises(ImageError, match=r"1x201 pixels; its longer side may be at most 200 times"):
        decode_image(_encoded(Image.new("RGB", (1, 201))))
    assert decode_image(_encoded(Image.new("RGB", (200, 1)))).size == (200, 1)


def test_single_pixel_is_an_image_unless_a_limit_says_otherwise() -> None:
    pixel = _encoded(Image.new("RGB", (1, 1), (9, 8, 7)))
    assert decode_image(pixel).getpixel((0, 0)) == (9, 8, 7)
    with pytest.raises(ImageError, match="1x1 pixels; each side needs at least 8"):
        decode_image(pixel, ImageLimits(min_side_px=8))


def test_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_rotation_in_the_metadata_is_applied(photograph_files: dict[str, Path]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate 270 degrees to see it upright
    image = Image.open(photograph_files["coffee"])
    found = decode_image(_encoded(image, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("form", FILES)
def test_head_tells_what_an_image_costs_without_its_pixels(form: str) -> None:
    head = inspect_image(FILES[form])
    assert (head.format, head.width_px, head.height_px) == (form, 40, 30)
    assert (head.pixels, head.num_bytes, head.num_scans) == (1200, len(FILES[form]), 1)
    assert head.is_cheap


def test_scans_are_those_of_the_picture_not_of_a_preview_in_its_metadata() -> None:
    preview = _encoded(PICTURE, "JPEG", progressive=True)
    exif = Image.Exif()
    exif[0x927C] = preview  # MakerNote, where cameras keep previews
    data = _encoded(PICTURE, "JPEG", exif=exif)
    assert data.count(b"\xff\xda") > 6
    assert inspect_image(data).num_scans == 1
    several = _encoded(PICTURE, "MPO", save_all=True, append_images=[PICTURE])
    assert inspect_image(several).num_scans == 1
    assert inspect_image(several).format == "JPEG"


@pytest.mark.parametrize("size", [(40, 30), (1000, 1000)])
def test_many_scans_are_not_cheap_and_beyond_the_limit_refused(size: tuple[int, int]) -> None:
    progressive = _encoded(PICTURE.resize(size), "JPEG", progressive=True)  # libjpeg-turbo's script for colour: 10
    assert inspect_image(progressive).num_scans == 10
    assert inspect_image(progressive).is_cheap
    assert inspect_image(_with_more_scans(progressive, 90)).num_scans == 100
    assert inspect_image(_with_more_scans(progressive, 90)).is_cheap == (size == (40, 30))
    with pytest.raises(ImageError, match=rf"{size[0]}x{size[1]} pixels in 101 scans; at most 100 are decoded"):
        decode_image(_with_more_scans(progressive, 91))


def test_scans_behind_restarts_fill_and_garbage_are_counted() -> None:
    data = _encoded(PICTURE, "JPEG", progressive=True, restart_marker_blocks=1)
    assert b"\xff\xd0" in data
    behind = data[: data.rindex(b"\xff\xda")] + b"garbage\xff\xff" + data[data.rindex(b"\xff\xda") :]
    assert inspect_image(behind).num_scans == inspect_image(data).num_scans == 10
    assert decode_image(behind) == decode_image(data)


def test_large_images_are_not_cheap() -> None:
    assert not inspect_image(_encoded(Image.new("L", (1025, 1024)))).is_cheap
    assert not inspect_image(FILES["PNG"] + bytes(1 << 20)).is_cheap


_SHORT_OF_MEMORY = """
import re, resource, sys
from bundle.decode import decode_image
from bundle.errors import OutOfMemoryError
data = open(sys.argv[1], "rb").read()
used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20), resource.RLIM_INFINITY))
try:
    decode_image(data)
except OutOfMemoryError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the address space of Linux is limited here")
@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("JPEG", {"progressive": True}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})],
)
def test_lack_of_memory_is_not_the_caller_s_damaged_image(
    form: str, options: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / form
    path.write_bytes(_encoded(Image.new("RGB", (3900, 3900)), form, **options))
    told = subprocess.run(
        [sys.executable, "-c", _SHORT_OF_MEMORY, path], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert "was not decoded: memory ran out" in told


@pytest.mark.parametrize("form", FILES)
@settings(max_examples=60, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=20))
def test_damaged_bytes_give_an_image_or_an_image_error_and_nothing_else(
    form: str, edits: list[tuple[int, int]]
) -> None:
    data = bytearray(FILES[form])
    for place, value in edits:
        data[place % len(data)] = value
    with suppress(ImageError):
        assert decode_image(bytes(data)).mode == "RGB"


HELD = """
import sys
from bundle.decode import decode_image
def peak_bytes():
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
def decode(path):
    with open(path, "rb") as file:
        decode_image(file.read())
decode(sys.argv[1])
before = peak_bytes()
decode(sys.argv[2])
print(peak_bytes() - before)
"""

KINDS: dict[str, tuple[str, str, dict[str, object]]] = {
    "RGB": ("RGB", "PNG", {}),
    "RGBA": ("RGBA", "PNG", {}),
    "grey and alpha": ("LA", "PNG", {}),
    "palette": ("P", "PNG", {}),
    "palette with a transparent entry": ("P", "PNG", {"transparency": 3}),
    "16 bits": ("I;16", "PNG", {}),
    "floats": ("F", "TIFF", {"compression": "tiff_lzw"}),
    "CMYK": ("CMYK", "JPEG", {}),
    "progressive": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    "WebP": ("RGB", "WEBP", {}),
    "WebP with alpha": ("RGBA", "WEBP", {}),
}


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is measured by Linux' own figures")
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_holds_no_more_than_its_limit_counts(tmp_path: Path, kind: str) -> None:
    """The count is of the kind and the size; an eighth more is the files' and the decoders' own."""
    mode, form, options = KINDS[kind]
    files = []
    for edge in (64, 2500):
        image = Image.new(mode, (edge, edge))
        files.append(tmp_path / f"{edge}.{form}")
        image.save(files[-1], form, **options)
    done = subprocess.run([sys.executable, "-c", HELD, *files], cwd=ROOT, capture_output=True, text=True, check=True)
    data = files[-1].read_bytes()
    counted = held_bytes(Image.open(BytesIO(data)), inspect_image(data).num_scans)
    assert 0.4 * counted < int(done.stdout) < 1.125 * counted
    with pytest.raises(ImageError, match=r"takes \d+ MiB to decode; \d+ are allowed"):
        decode_image(data, ImageLimits(max_decoded_bytes=counted - 1))
    decode_image(data, ImageLimits(max_decoded_bytes=counted))
