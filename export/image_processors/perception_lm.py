"""PerceptionLMImageProcessor: the grid of tiles in which an image could be shown largest, behind the whole image.

The class scales by torchvision alone; pixels here are Pillow's, as for every other class.
"""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from bundle.image import CanvasGrid, Fixed
from export.image_processors.image_processor import HALF, SHARED, ImageProcessor, Settings

_TILES = "thumb+tile"


def _canvas_grid(full: Settings, source: str) -> CanvasGrid | Fixed:
    edge, most = full["tile_size"], full["max_num_tiles"]
    if not isinstance(edge, int) or not isinstance(most, int):
        raise UnsupportedConfigError(f"{source}: tile_size = {edge!r}, max_num_tiles = {most!r}; give whole numbers")
    if full["vision_input_type"] != _TILES:
        return Fixed(height_px=edge, width_px=edge)
    return CanvasGrid(tile_px=edge, most_tiles=most)


PERCEPTION_LM = ImageProcessor(
    {
        **SHARED,
        "vision_input_type": _TILES,
        "tile_size": 448,
        "max_num_tiles": 36,
        "image_mean": HALF,
        "image_std": HALF,
    },
    _canvas_grid,
    without_effect=frozenset({"size"}),
)
