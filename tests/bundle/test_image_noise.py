"""Noise as a diffusion's forward process adds it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bundle.image import Fixed, ImageSpec
from bundle.image.noise import shares, under_noise

SPEC = ImageSpec(
    geometry=Fixed(height_px=20, width_px=30),
    resample="bicubic",
    rescale_factor=1 / 255,
    mean=(0.5, 0.4, 0.3),
    std=(0.5, 0.25, 0.2),
)


@pytest.mark.parametrize("step", [0, 1, 500, 999])
def test_shares_are_those_of_the_published_schedule(step: int) -> None:
    left = 1.0
    for place in range(step + 1):
        slope = -6 + 12 * place / 999
        left *= 1 - ((0.5e-2 - 1e-5) / (1 + math.exp(-slope)) + 1e-5)
    assert shares(step) == pytest.approx((math.sqrt(left), math.sqrt(1 - left)), rel=1e-9)


def test_normalised_pixels_get_their_share_of_noise_and_stay_as_they_were() -> None:
    pixels = np.full((2, 3, 40, 50), 0.5, np.float32)
    found = under_noise(SPEC, pixels, 500, np.random.default_rng(0))
    signal, noise = shares(500)
    assert (found.shape, found.dtype) == (pixels.shape, np.float32)
    assert found.mean() == pytest.approx(0.5 * signal, abs=0.02)  # 12,000 draws
    assert found.std() == pytest.approx(noise, abs=0.02)
    assert (pixels == 0.5).all()
    np.testing.assert_array_equal(found, under_noise(SPEC, pixels, 500, np.random.default_rng(0)))


def test_bytes_get_the_same_noise_as_far_as_bytes_go() -> None:
    image = np.random.default_rng(1).integers(0, 256, (1, 8, 9, 3), np.uint8)
    mean, std = np.array(SPEC.mean), np.array(SPEC.std)
    found = under_noise(SPEC, image, 300, np.random.default_rng(2))
    drawn = np.random.default_rng(2).standard_normal(image.shape, np.float32)
    signal, noise = shares(300)
    exact = ((signal * ((image / 255 - mean) / std) + noise * drawn) * std + mean) * 255
    assert found.dtype == np.uint8
    assert exact.min() < 0
    assert exact.max() > 255
    assert np.abs(found - np.clip(exact, 0, 255)).max() <= 0.51  # rounded, of float32
