"""PixtralImageProcessor: an image keeps its shape, within a longest side, in whole patches."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from bundle.image import LongestEdge
from export.image_processors.image_processor import CLIP_MEAN, CLIP_STD, SHARED, ImageProcessor, Settings, edge_of


def _longest_edge(full: Settings, source: str) -> LongestEdge:
    size, patch = full["size"], edge_of(full["patch_size"])
    longest = size.get("longest_edge") or edge_of(size) if isinstance(size, Mapping) else None
    if not isinstance(longest, int) or patch is None:
        raise UnsupportedConfigError(
            f"{source}: size = {size!r} with patch_size = {full['patch_size']!r}; built are a longest_edge, or a "
            "height and a width that are equal, and square patches"
        )
    return LongestEdge(longest_px=longest, step_px=patch)


PIXTRAL = ImageProcessor(
    {
        **SHARED,
        "size": {"longest_edge": 1024},
        "patch_size": {"height": 16, "width": 16},
        "do_pad": True,  # of a batch, whose padding is cut off behind the first convolution
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
    _longest_edge,
)
