"""GotOcr2ImageProcessor: the grid of tiles that is nearest to an image's shape, where it cuts at all."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from bundle.image import NearestGrid
from export.image_processors.image_processor import CLIP_MEAN, CLIP_STD, SHARED, ImageProcessor, Settings


def nearest_grid(full: Settings, source: str) -> NearestGrid:
    """Return the grids between two numbers of tiles, or one tile."""
    size = full["size"]
    if not isinstance(size, Mapping) or set(size) != {"height", "width"}:
        raise UnsupportedConfigError(f"{source}: size = {size!r} is not supported; give height and width")
    cuts = bool(full["crop_to_patches"])
    return NearestGrid(
        height_px=int(size["height"]),
        width_px=int(size["width"]),
        least_tiles=int(full["min_patches"]) if cuts else 1,
        most_tiles=int(full["max_patches"]) if cuts else 1,
    )


GOT_OCR2 = ImageProcessor(
    {
        **SHARED,
        "size": {"height": 384, "width": 384},
        "crop_to_patches": False,
        "min_patches": 1,
        "max_patches": 12,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
    nearest_grid,
)
