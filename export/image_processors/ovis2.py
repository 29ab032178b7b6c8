"""Ovis2ImageProcessor: the fewest tiles that cover an image, where it cuts at all."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from bundle.image import CoveringGrid
from export.image_processors.image_processor import CLIP_MEAN, CLIP_STD, SHARED, ImageProcessor, Settings


def _covering_grid(full: Settings, source: str) -> CoveringGrid:
    size = full["size"]
    if not isinstance(size, Mapping) or set(size) != {"height", "width"} or size["height"] != size["width"]:
        raise UnsupportedConfigError(f"{source}: size = {size!r} is not supported; give an equal height and width")
    if full["do_center_crop"]:
        raise UnsupportedConfigError(f"{source}: do_center_crop is true; tiles are never cropped")
    cuts = bool(full["crop_to_patches"])
    if cuts and not full["use_covering_area_grid"]:
        raise UnsupportedConfigError(f"{source}: use_covering_area_grid is false; only true is supported")
    return CoveringGrid(tile_px=int(size["height"]), most_tiles=int(full["max_patches"]) if cuts else 1)


OVIS2 = ImageProcessor(
    {
        **SHARED,
        "size": {"height": 384, "width": 384},
        "crop_to_patches": False,
        "min_patches": 1,
        "max_patches": 12,
        "use_covering_area_grid": True,
        "do_center_crop": None,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
    _covering_grid,
)
"""`min_patches` is not looked at where a grid covers."""
