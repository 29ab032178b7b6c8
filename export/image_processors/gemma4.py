"""Gemma4ImageProcessor: an image in its shape, of as many tokens as are allowed; bytes become numbers from 0 to 1."""

from __future__ import annotations

from bundle.image import SoftTokens
from export.image_processors.image_processor import SHARED, Colours, ImageProcessor, Settings, colours


def _soft_tokens(full: Settings, source: str) -> SoftTokens:
    step = int(full["patch_size"]) * int(full["pooling_kernel_size"])
    return SoftTokens(step_px=step, most_tokens=int(full["max_soft_tokens"]))


def _colours(full: Settings, source: str) -> Colours:
    """Return the colours; most checkpoints do not normalise, for the model shifts and scales by itself."""
    if full["do_normalize"]:
        return colours(full, source)
    return Colours(float(full["rescale_factor"]), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


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
    colours=_colours,
)
