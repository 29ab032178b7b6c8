"""Idefics3ImageProcessor and SmolVLMImageProcessor: tiles, and the whole image."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from bundle.image import Tiled
from export.image_processors.image_processor import ImageProcessor, Settings
from export.image_processors.siglip import SIGLIP


def _tiled(full: Settings, source: str) -> Tiled:
    if full["do_center_crop"]:
        raise UnsupportedConfigError(f"{source}: do_center_crop is true; tiles are never cropped")
    edges: dict[str, int] = {}
    for key in ("size", "max_image_size"):
        value = full[key]
        if not isinstance(value, Mapping) or set(value) != {"longest_edge"}:
            raise UnsupportedConfigError(f"{source}: {key} = {value!r} is not supported; give longest_edge")
        edges[key] = int(value["longest_edge"])
    return Tiled(
        longest_edge_px=edges["size"], tile_px=edges["max_image_size"], splits=bool(full["do_image_splitting"])
    )


IDEFICS3 = ImageProcessor(
    {
        **SIGLIP.defaults,
        "size": {"longest_edge": 4 * 364},
        "resample": 1,
        "max_image_size": {"longest_edge": 364},
        "do_image_splitting": True,
        "do_pad": True,
    },
    _tiled,
)
