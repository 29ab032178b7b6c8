"""MllamaImageProcessor: an image in the grid of tiles that scales it least."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from bundle.image import Canvas
from export.image_processors.image_processor import HALF, SHARED, ImageProcessor, Settings


def _canvas(full: Settings, source: str) -> Canvas:
    size = full["size"]
    if not isinstance(size, Mapping) or set(size) != {"height", "width"} or size["height"] != size["width"]:
        raise UnsupportedConfigError(f"{source}: size = {size!r} is not supported; give equal height and width")
    if not full["do_pad"]:
        raise UnsupportedConfigError(f"{source}: do_pad is false; only true is supported")
    return Canvas(tile_px=int(size["height"]), most_tiles=int(full["max_image_tiles"]))


MLLAMA = ImageProcessor(
    {
        **SHARED,
        "resample": 2,
        "size": {"height": 224, "width": 224},
        "do_pad": True,
        "max_image_tiles": 4,
        "image_mean": HALF,
        "image_std": HALF,
    },
    _canvas,
)
