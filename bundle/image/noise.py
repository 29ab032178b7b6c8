"""Images under noise, as the forward process of a diffusion leaves them.

Source: visual contrastive decoding (Leng et al. 2023, section 3.1, equation 1; the schedule is that of its code): after
t of 1,000 steps an image is sqrt(a) x + sqrt(1 - a) e with e normal and a the product of 1 - b over the steps, where b
rises from 1e-5 to 5e-3 along a sigmoid from -6 to 6. x is what the encoder takes, normalised. It differs where an
encoder takes bytes and normalises by itself: there the sum is rounded to bytes, and cut off at black and white.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

from bundle.image import ImageSpec, Pixels

NUM_STEPS = 1000
_FIRST, _LAST = 1e-5, 5e-3
_SLOPE_END = 6.0


@cache
def shares(step: int) -> tuple[float, float]:
    """Return how much there is of an image and of noise after a step in [0, 1000); their squares sum to 1."""
    slope = np.linspace(-_SLOPE_END, _SLOPE_END, NUM_STEPS)
    added = (_LAST - _FIRST) / (1 + np.exp(-slope)) + _FIRST
    left = float(np.cumprod(1 - added)[step])
    return math.sqrt(left), math.sqrt(1 - left)


def under_noise(spec: ImageSpec, pixels: Pixels, step: int, rng: np.random.Generator) -> Pixels:
    """Return tiles under noise, in the form in which they came: a new array.

    Args:
        spec: How bytes become what the encoder takes.
        pixels: [tiles, 3, h, w] float32, normalised, or [tiles, h, w, 3] uint8.
        step: In [0, 1000).
        rng: Of the noise.
    """
    signal, noise = shares(step)
    drawn = rng.standard_normal(pixels.shape, np.float32) * np.float32(noise)
    if pixels.dtype != np.uint8:
        drawn += np.float32(signal) * pixels
        return drawn
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    normalised = (pixels * np.float32(spec.rescale_factor) - mean) / std
    back: npt.NDArray[np.float32] = ((np.float32(signal) * normalised + drawn) * std + mean) / spec.rescale_factor
    return np.clip(np.rint(back), 0, 255).astype(np.uint8)
