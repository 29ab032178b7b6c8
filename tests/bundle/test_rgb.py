"""Pictures that a plain conversion loses reach the model as a person sees them."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bundle.decode import decode_image

RAMP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
HIGH_BYTES = RAMP >> 8


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _drawing() -> Image.Image:
    """Black strokes on a transparent ground that is stored as black, as most programs do."""
    strokes = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(strokes).ellipse((12, 12, 52, 52), fill=255)
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.putalpha(strokes)
    return image


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGBA", "PNG", {}),
        ("LA", "PNG", {}),
        ("RGBA", "WEBP", {"lossless": True, "exact": True}),
        ("RGBA", "TIFF", {}),
        ("RGBA", "GIF", {}),
    ],
)
def test_drawing_on_a_transparent_ground_is_laid_on_white(mode: str, form: str, options: dict[str, object]) -> None:
    found = np.asarray(decode_image(_encoded(_drawing().convert(mode), form, **options)))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[32, 32].tolist() == [0, 0, 0]


def test_half_transparent_colours_are_mixed_with_white() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 50, 4), np.uint8)
    alpha = pixels[..., 3:].astype(float) / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    for form, options in {"PNG": {}, "WEBP": {"lossless": True, "exact": True}}.items():
        found = np.asarray(decode_image(_encoded(Image.fromarray(pixels), form, **options)))
        assert np.abs(found - expected).max() <= 1  # of 255: both round


def test_opaque_alpha_changes_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8)
    pixels[..., 3] = 255
    np.testing.assert_array_equal(np.asarray(decode_image(_encoded(Image.fromarray(pixels), "PNG"))), pixels[..., :3])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_one_transparent_colour_becomes_white(mode: str) -> None:
    image = Image.new("RGB", (4, 4), "black")
    image.paste("white", (0, 0, 2, 4))
    key = {"1": 0, "L": 0, "P": 0, "RGB": (0, 0, 0)}[mode]
    stored = image.quantize(2) if mode == "P" else image.convert(mode)
    if mode == "P":
        key = int(np.asarray(stored)[0, 3])
    found = np.asarray(decode_image(_encoded(stored, "PNG", transparency=key)))
    assert (found == 255).all()


def test_transparency_per_entry_of_a_palette_is_laid_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.putpixel((1, 0), 1)
    found = np.asarray(decode_image(_encoded(image, "PNG", transparency=bytes((0, 255)))))
    assert found[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize(
    ("image", "form"),
    [
        (Image.fromarray(RAMP), "PNG"),
        (Image.fromarray(RAMP), "TIFF"),
        (Image.frombytes("I;16B", (64, 64), RAMP.astype(">u2").tobytes()), "TIFF"),
    ],
    ids=["PNG", "TIFF", "TIFF, big-endian"],
)
def test_sixteen_bits_of_grey_become_their_high_byte(image: Image.Image, form: str) -> None:
    np.testing.assert_array_equal(np.asarray(decode_image(_encoded(image, form)))[..., 0], HIGH_BYTES)


@pytest.mark.parametrize(
    "values",
    [
        (RAMP / 65535).astype(np.float32),
        RAMP.astype(np.float32),
        RAMP.astype(np.float32) * 1e6 - 3e9,
        RAMP.astype(np.int32),
        RAMP.astype(np.int32) * 32768 - 2**30,
    ],
    ids=["floats to 1", "floats to 65535", "floats of their own range", "integers to 65535", "integers of their own"],
)
def test_wide_greyscale_is_scaled_to_its_range(values: np.ndarray) -> None:
    found = np.asarray(decode_image(_encoded(Image.fromarray(values), "TIFF")))[..., 0].astype(int)
    assert np.abs(found - HIGH_BYTES).max() <= 1


def test_bytes_that_are_stored_wide_stay_as_they_are() -> None:
    eight = np.arange(256, dtype=np.int32).reshape(16, 16)
    for values in (eight, eight.astype(np.float32)):
        found = np.asarray(decode_image(_encoded(Image.fromarray(values), "TIFF")))[..., 0]
        np.testing.assert_array_equal(found, eight)


def test_values_that_are_no_numbers_are_black() -> None:
    values = np.full((4, 4), 0.5, np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    found = np.asarray(decode_image(_encoded(Image.fromarray(values), "TIFF")))[..., 0]
    assert found[0].tolist() == [0, 0, 0, 128]


def test_transparent_grey_of_sixteen_bits_becomes_white() -> None:
    found = np.asarray(decode_image(_encoded(Image.fromarray(RAMP), "PNG", transparency=0)))[..., 0]
    assert (found[:, 0] == 255).all()
    np.testing.assert_array_equal(found[:, 1:], HIGH_BYTES[:, 1:])
