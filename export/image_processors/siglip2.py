"""Siglip2ImageProcessor: an image keeps its shape, within a number of patches."""

from __future__ import annotations

from bundle.image import MostPatches
from export.image_processors.image_processor import HALF, SHARED, ImageProcessor, Settings


def _geometry(full: Settings, source: str) -> MostPatches:
    return MostPatches(patch_px=int(full["patch_size"]), most_patches=int(full["max_num_patches"]))


SIGLIP2 = ImageProcessor(
    {**SHARED, "resample": 2, "patch_size": 16, "max_num_patches": 256, "image_mean": HALF, "image_std": HALF},
    _geometry,
)
