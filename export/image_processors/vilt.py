"""ViltImageProcessor, BridgeTowerImageProcessor: whole patches of an image in its shape, or a square of them."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from bundle.image import ShortestEdge
from export.image_processors.image_processor import CLIP_MEAN, CLIP_STD, HALF, SHARED, ImageProcessor, Settings

_LONGEST_OF_SHORTEST = 1333 / 800
"""Fixed in the processor, from COCO's usual shapes."""


def _shortest_edge(full: Settings, source: str) -> ShortestEdge:
    size = full["size"]
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if not isinstance(shortest, int):
        raise UnsupportedConfigError(f"{source}: size = {size!r} is not supported; give shortest_edge")
    longest = int(_LONGEST_OF_SHORTEST * shortest)
    crop = full["crop_size"] if full.get("do_center_crop") else None
    if isinstance(crop, Mapping):
        crop = crop.get("shortest_edge") or crop.get("height")
    if crop is not None and not isinstance(crop, int):
        raise UnsupportedConfigError(
            f"{source}: crop_size = {full['crop_size']!r} is not supported; give shortest_edge"
        )
    step = int(full["size_divisor"])
    return ShortestEdge(shortest_px=shortest, longest_px=longest, step_px=step, crop_px=crop)


VILT = ImageProcessor(
    {
        **SHARED,
        "size": {"shortest_edge": 384},
        "size_divisor": 32,
        "do_pad": True,
        "image_mean": HALF,
        "image_std": HALF,
    },
    _shortest_edge,
)
BRIDGETOWER = ImageProcessor(
    {
        **SHARED,
        "size": {"shortest_edge": 288},
        "size_divisor": 32,
        "do_center_crop": True,
        "crop_size": {"shortest_edge": 288},
        "do_pad": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
    _shortest_edge,
)
