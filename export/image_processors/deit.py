"""DeiTImageProcessor: every image stretched to a square, whose centre is taken."""

from __future__ import annotations

from bundle.image import Cropped, Fixed, StretchedCrop
from export.image_processors.clip import CLIP, sides_of, single_tile
from export.image_processors.image_processor import HALF, ImageProcessor, Settings


def _centre(full: Settings, source: str) -> Cropped | Fixed | StretchedCrop:
    size, crop = sides_of(full["size"], "size", source), sides_of(full["crop_size"], "crop_size", source)
    size = (size, size) if isinstance(full["size"], int) and isinstance(size, int) else size
    if isinstance(size, tuple) and isinstance(crop, tuple) and full["do_center_crop"] and size != crop:
        return StretchedCrop(stretched_px=size, height_px=crop[0], width_px=crop[1])
    return single_tile(full, source)


DEIT = ImageProcessor(
    {
        **CLIP.defaults,
        "size": {"height": 256, "width": 256},
        "default_to_square": True,
        "crop_size": {"height": 224, "width": 224},
        "image_mean": HALF,
        "image_std": HALF,
    },
    _centre,
)
