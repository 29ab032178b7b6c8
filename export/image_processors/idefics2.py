"""Idefics2ImageProcessor: sides between two bounds, and where it splits, an image's quarters."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from bundle.image import Bounded
from export.image_processors.image_processor import HALF, SHARED, ImageProcessor, Settings


def _bounded(full: Settings, source: str) -> Bounded:
    size = full["size"]
    if not isinstance(size, Mapping) or set(size) != {"shortest_edge", "longest_edge"}:
        raise UnsupportedConfigError(f"{source}: size = {size!r} is not supported; give shortest_edge and longest_edge")
    return Bounded(
        shortest_px=int(size["shortest_edge"]),
        longest_px=int(size["longest_edge"]),
        splits=bool(full["do_image_splitting"]),
    )


IDEFICS2 = ImageProcessor(
    {
        **SHARED,
        "resample": 2,
        "size": {"shortest_edge": 378, "longest_edge": 980},
        "do_image_splitting": False,
        "do_pad": True,  # of a batch, whose padding is masked
        "image_mean": HALF,
        "image_std": HALF,
    },
    _bounded,
)
