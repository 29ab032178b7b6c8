"""ViltImageProcessor: an image keeps its shape, in whole patches."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from bundle.image import ShortestEdge
from export.image_processors.image_processor import HALF, SHARED, ImageProcessor, Settings

_LONGEST_OF_SHORTEST = 1333 / 800
"""Fixed in the processor, from COCO's usual shapes."""


def _shortest_edge(full: Settings, source: str) -> ShortestEdge:
    size = full["size"]
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if not isinstance(shortest, int):
        raise UnsupportedConfigError(f"{source}: size = {size!r} is not supported; give shortest_edge")
    longest = int(_LONGEST_OF_SHORTEST * shortest)
    return ShortestEdge(shortest_px=shortest, longest_px=longest, step_px=int(full["size_divisor"]))


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
