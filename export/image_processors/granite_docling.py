"""GraniteDoclingImageProcessor: GOT-OCR 2's grids, of 16 tiles a side at most."""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from bundle.image import NearestGrid
from export.image_processors.got_ocr2 import GOT_OCR2, nearest_grid
from export.image_processors.image_processor import ImageProcessor, Settings

_MOST_A_SIDE = 16
"""The vocabulary has markers of so many rows and columns (transformers, `get_all_supported_aspect_ratios`)."""


def _marked_grid(full: Settings, source: str) -> NearestGrid:
    for key in ("dense_max_patches", "fine_route"):
        if full[key]:
            raise UnsupportedConfigError(
                f"{source}: {key} is {full[key]!r}; built are grids by max_patches alone, coarse"
            )
    return nearest_grid(full, source).model_copy(update={"most_a_side": _MOST_A_SIDE})


GRANITE_DOCLING = ImageProcessor(
    {
        **GOT_OCR2.defaults,
        "size": {"height": 512, "width": 512},
        "crop_to_patches": True,
        "max_patches": 32,
        "fine_route": False,
        "dense_max_patches": 0,
        "dense_max_scale": 0.0,
        "dense_min_aspect": 0.0,
        "dense_max_aspect": 0.0,
    },
    _marked_grid,
)
