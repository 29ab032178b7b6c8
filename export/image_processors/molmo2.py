"""Molmo2ImageProcessor: crops of a canvas that overlap, and the whole image as one, scaled without a filter."""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from bundle.image import OverlappingCrops
from export.image_processors.image_processor import HALF, SHARED, ImageProcessor, Settings, edge_of

_BILINEAR = 2


def _overlapping_crops(full: Settings, source: str) -> OverlappingCrops:
    edge, patch, margins = edge_of(full["size"]), int(full["patch_size"]), full["overlap_margins"]
    if edge is None or edge % patch:
        raise UnsupportedConfigError(
            f"{source}: size = {full['size']!r}; crops are squares of patches of {patch} pixels"
        )
    if full["resample"] != _BILINEAR:
        raise UnsupportedConfigError(
            f"{source}: resample = {full['resample']!r}; built is the one that the model was trained with, 2 (bilinear)"
        )
    if len(margins) != 2 or min(margins) < 0 or sum(margins) * patch >= edge:
        raise UnsupportedConfigError(
            f"{source}: overlap_margins = {margins!r}; two numbers of patches are needed that leave some of the "
            f"{edge // patch} of a crop between them"
        )
    return OverlappingCrops(crop_px=edge, window_px=edge - sum(margins) * patch, most_crops=int(full["max_crops"]))


MOLMO2 = ImageProcessor(
    {
        **SHARED,
        "size": {"height": 378, "width": 378},
        "resample": _BILINEAR,
        "max_crops": 8,
        "overlap_margins": (4, 4),
        "patch_size": 14,
        "pooling_size": (2, 2),
        "image_mean": HALF,
        "image_std": HALF,
    },
    _overlapping_crops,
)
