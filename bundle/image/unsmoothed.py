"""Images scaled without a filter: bilinear among the nearest four pixels, however much smaller they become."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Float32 = npt.NDArray[np.float32]
Places = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Float32]


def unsmoothed(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return an RGB image scaled to (width, height), as PyTorch's `interpolate` does without antialiasing.

    Sums are rounded as its kernel for AVX2 rounds them (ATen, `UpSampleKernel.cpp`, outputs above 128 pixels of height
    and width together), and halves become the even byte, as of `torch.round`: many sums of bytes are halves, so that
    another order of roundings gives other bytes.
    """
    if image.size == size:
        return image
    pixels = np.asarray(image)
    (top, bottom, down), (left, right, across) = (
        _places(*each) for each in zip(pixels.shape[:2], size[::-1], strict=True)
    )
    above, below = (
        _between(pixels[rows[:, None], left], pixels[rows[:, None], right], across[:, None]) for rows in (top, bottom)
    )
    scaled = np.rint(_between(above, below, down[:, None, None]))
    return Image.fromarray(scaled.clip(0, 255).astype(np.uint8))


def _places(size: int, wanted: int) -> Places:
    """Return [wanted] the two pixels between whose middles each lies, and the share of the second."""
    step, middles = np.float32(size) / np.float32(wanted), np.arange(wanted, dtype=np.float32) + np.float32(0.5)
    at = np.maximum(_rounded_once(middles, step, np.float32(-0.5)), np.float32(0))
    first = np.minimum(at.astype(np.int64), size - 1)
    return first, np.minimum(first + 1, size - 1), (at - first.astype(np.float32)).clip(0, 1)


def _between(
    first: npt.NDArray[np.uint8] | Float32, second: npt.NDArray[np.uint8] | Float32, share: Float32
) -> Float32:
    """Return what lies between two, `share` of the second."""
    return _rounded_once(first, np.float32(1) - share, second.astype(np.float32) * share)


def _rounded_once(a: npt.NDArray[np.uint8] | Float32, b: Float32 | np.float32, c: Float32 | np.float32) -> Float32:
    """Return a * b + c, rounded to float32 once: a product of two is exact in float64."""
    return (a.astype(np.float64) * np.asarray(b, np.float64) + c).astype(np.float32)
