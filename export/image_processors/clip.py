"""CLIPImageProcessor and what shares its settings: one tile, cropped or stretched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bundle.errors import UnsupportedConfigError
from bundle.image import Cropped, Fixed
from export.image_processors.image_processor import CLIP_MEAN, CLIP_STD, SHARED, ImageProcessor, Settings


def single_tile(full: Settings, source: str) -> Cropped | Fixed:
    """Return a stretch to height and width, or a crop out of what was scaled to a shortest edge."""
    if full["do_pad"]:
        raise UnsupportedConfigError(f"{source}: do_pad is true (padding to a square); only false is supported")
    size = sides_of(full["size"], "size", source)
    if isinstance(full["size"], int) and full.get("default_to_square"):
        size = (full["size"], full["size"])
    crop = sides_of(full["crop_size"], "crop_size", source) if full["do_center_crop"] else None
    if isinstance(size, tuple):
        if crop not in (None, size):
            raise UnsupportedConfigError(
                f"{source}: crop_size {full['crop_size']} differs from size {full['size']}; after a resize to a fixed "
                "size only the same crop is supported"
            )
        return Fixed(height_px=size[0], width_px=size[1])
    if not isinstance(crop, tuple):
        raise UnsupportedConfigError(
            f"{source}: size {full['size']} with crop_size {full['crop_size'] if full['do_center_crop'] else None}: "
            "pixel_values would have no fixed size; a centre crop to height and width is needed"
        )
    return Cropped(shortest_edge_px=size, height_px=crop[0], width_px=crop[1])


def sides_of(value: Any, key: str, source: str) -> int | tuple[int, int]:
    """Return a shortest edge, or (height, width)."""
    if isinstance(value, int):  # the oldest files: the shortest edge, or the side of a square crop
        return value if key == "size" else (value, value)
    if isinstance(value, Mapping):
        if set(value) == {"shortest_edge"} and key == "size":
            return int(value["shortest_edge"])
        if set(value) == {"height", "width"}:
            return int(value["height"]), int(value["width"])
    raise UnsupportedConfigError(
        f"{source}: {key} = {value!r} is not supported; give shortest_edge, or height and width"
    )


CLIP = ImageProcessor(
    {
        **SHARED,
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_pad": False,
    },
    single_tile,
)
