"""Gemma4ImageProcessor: an image in its shape, of as many tokens as are allowed; bytes become numbers from 0 to 1."""

from __future__ import annotations

from bundle.image import SoftTokens
from export.image_processors.image_processor import SHARED, ImageProcessor, Settings, colours_where_asked


def _soft_tokens(full: Settings, source: str) -> SoftTokens:
    step = int(full["patch_size"]) * int(full["pooling_kernel_size"])
    return SoftTokens(step_px=step, most_tokens=int(full["max_soft_tokens"]))


GEMMA4 = ImageProcessor(
    {
        **SHARED,
        "do_normalize": False,
        "image_mean": (0.0, 0.0, 0.0),
        "image_std": (1.0, 1.0, 1.0),
        "patch_size": 16,
        "max_soft_tokens": 280,
        "pooling_kernel_size": 3,
        "size": None,  # images are scaled by their tokens
    },
    _soft_tokens,
    without_effect=frozenset({"image_seq_length"}),  # the most tokens, once more
    colours=colours_where_asked,
)
