"""TextHawk's images: settings and grids of GotOcr2ImageProcessor, the grid in one piece behind the whole image.

The authors publish no code. Their grids are UReader's (arXiv 2310.05126, 3.2), which weighs resolution beside shape;
here shape decides first, as of InternVL.
"""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from bundle.image import GridCanvas
from export.image_processors.got_ocr2 import GOT_OCR2, nearest_grid
from export.image_processors.image_processor import ImageProcessor, Settings


def _grid_canvas(full: Settings, source: str) -> GridCanvas:
    grid = nearest_grid(full, source)
    if grid.height_px != grid.width_px:
        raise UnsupportedConfigError(f"{source}: size {full['size']!r}; tiles are squares")
    return GridCanvas(tile_px=grid.height_px, least_tiles=grid.least_tiles, most_tiles=grid.most_tiles)


TEXTHAWK = ImageProcessor({**GOT_OCR2.defaults, "crop_to_patches": True}, _grid_canvas)
