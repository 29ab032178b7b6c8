"""LlavaOnevisionImageProcessor: as LLaVA-NeXT's, where a prompt has one image; several are padded, a tile each."""

from __future__ import annotations

from itertools import product

from bundle.image import Pinpoints
from export.image_processors import llava_next
from export.image_processors.image_processor import ImageProcessor, Settings, background
from export.image_processors.llava_next import LLAVA_NEXT

_TILE_PX, _MOST_A_SIDE = 384, 6
PINPOINTS = tuple((rows * _TILE_PX, cols * _TILE_PX) for rows, cols in product(range(1, _MOST_A_SIDE + 1), repeat=2))
"""(height, width) of grids in pixels, where neither config nor processor names any."""


def _pinpoints(full: Settings, source: str) -> Pinpoints:
    alone = llava_next.pinpoints(full, source)
    return alone.model_copy(update={"colour_among_others": background(full, source)})


LLAVA_ONEVISION = ImageProcessor(
    {
        **LLAVA_NEXT.defaults,
        "size": {"height": _TILE_PX, "width": _TILE_PX},
        "crop_size": None,
        "do_center_crop": False,
        "image_grid_pinpoints": PINPOINTS,
    },
    _pinpoints,
)
