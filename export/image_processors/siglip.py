"""SiglipImageProcessor: every image stretched to one size."""

from __future__ import annotations

from export.image_processors.clip import CLIP, single_tile
from export.image_processors.image_processor import HALF, ImageProcessor

SIGLIP = ImageProcessor(
    {
        **CLIP.defaults,
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "image_mean": HALF,
        "image_std": HALF,
    },
    single_tile,
)
