"""Photographs as they come over a network, new ones each time; it crosses to peers' environments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from io import BytesIO

_WIDTH_PX, _HEIGHT_PX = 640, 480
"""Of COCO's photographs, most of them."""
_QUALITY = 90


class Photographs:
    """A source of JPEGs, no two alike: whoever keeps what it has seen gains nothing by it."""

    def __init__(self) -> None:
        self._seeds: Iterator[int] = itertools.count()

    def take(self, count: int) -> list[bytes]:
        """Return so many new JPEGs of 640 x 480 pixels, of smooth colours and some noise."""
        return [_photograph(next(self._seeds)) for _ in range(count)]


def _photograph(seed: int) -> bytes:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
    smooth = np.asarray(coarse.resize((_WIDTH_PX, _HEIGHT_PX), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
    written = BytesIO()
    Image.fromarray(noisy).save(written, format="JPEG", quality=_QUALITY)
    return written.getvalue()
