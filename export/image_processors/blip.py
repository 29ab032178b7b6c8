"""BlipImageProcessor: every image stretched to one size, in CLIP's colours."""

from __future__ import annotations

from export.image_processors.clip import CLIP, single_tile
from export.image_processors.image_processor import ImageProcessor

BLIP = ImageProcessor(
    {**CLIP.defaults, "size": {"height": 384, "width": 384}, "do_center_crop": False},
    single_tile,
)
