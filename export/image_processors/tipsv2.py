"""Tipsv2ImageProcessor: every image stretched to a square, and its colours as parts of the lightest, not normalised.

In transformers it is torchvision's alone; Pillow resizes here, as in the authors' code, and a pixel differs by a byte.
"""

from __future__ import annotations

from export.image_processors.clip import CLIP, single_tile
from export.image_processors.image_processor import Colours, ImageProcessor, Settings, colours


def _colours(full: Settings, source: str) -> Colours:
    if full["do_normalize"]:
        return colours(full, source)
    return Colours(float(full["rescale_factor"]), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


TIPSV2 = ImageProcessor(
    {
        **CLIP.defaults,
        "size": {"height": 448, "width": 448},
        "do_center_crop": False,
        "resample": 2,
        "do_normalize": False,
        "image_mean": None,
        "image_std": None,
    },
    single_tile,
    colours=_colours,
)
