"""Qwen2VLImageProcessor: an image keeps its shape, in whole squares of patches."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from bundle.image import Area
from export.image_processors.image_processor import CLIP_MEAN, CLIP_STD, SHARED, ImageProcessor, Settings


def area(full: Settings, source: str, *, grows: bool = False) -> Area:
    """Return the geometry of a processor of that kind; `grows` as `bundle.image.area.Area`."""
    size = full["size"]
    if not isinstance(size, Mapping):
        raise UnsupportedConfigError(f"{source}: size = {size!r} is not supported; give shortest_edge and longest_edge")
    least, most = size.get("shortest_edge"), size.get("longest_edge")
    least, most = full["min_pixels"] or least, full["max_pixels"] or most  # the older names go before
    if not isinstance(least, int) or not isinstance(most, int):
        raise UnsupportedConfigError(
            f"{source}: size = {size!r}, min_pixels {full['min_pixels']}, max_pixels {full['max_pixels']}: no bounds "
            "of an image's area; give shortest_edge and longest_edge"
        )
    return Area(step_px=int(full["patch_size"]) * int(full["merge_size"]), least_px=least, most_px=most, grows=grows)


QWEN2_VL = ImageProcessor(
    {
        **SHARED,
        "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
        "min_pixels": None,
        "max_pixels": None,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    },
    area,
)
