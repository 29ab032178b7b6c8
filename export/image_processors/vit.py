"""ViTImageProcessor: every image stretched to a square."""

from __future__ import annotations

from export.image_processors.clip import CLIP, single_tile
from export.image_processors.image_processor import HALF, ImageProcessor

VIT = ImageProcessor(
    {
        **CLIP.defaults,
        "size": {"height": 224, "width": 224},
        "default_to_square": True,
        "do_center_crop": False,
        "resample": 2,
        "image_mean": HALF,
        "image_std": HALF,
    },
    single_tile,
)
