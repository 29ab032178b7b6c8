"""DeepseekOcr2ImageProcessor: an image padded to a large square, and tiles beside that where it is larger than one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bundle.errors import UnsupportedConfigError
from bundle.image import PaddedWithTiles
from export.image_processors.image_processor import HALF, SHARED, ImageProcessor, Settings

GREY = (127, 127, 127)


def _padded_with_tiles(full: Settings, source: str) -> PaddedWithTiles:
    size, colour = full["size"], full["background_color"]
    if not isinstance(size, Mapping) or set(size) != {"height", "width"} or size["height"] != size["width"]:
        raise UnsupportedConfigError(f"{source}: size = {size!r} is not supported; give one height and width")
    if not full["crop_to_patches"]:
        raise UnsupportedConfigError(
            f"{source}: crop_to_patches is false, for which transformers' processor counts other tokens than the model "
            "makes; only true is supported"
        )
    if not isinstance(colour, Sequence) or len(colour) != len(GREY):
        raise UnsupportedConfigError(f"{source}: background_color = {colour!r}; three bytes are needed, for R, G and B")
    red, green, blue = map(int, colour)
    return PaddedWithTiles(
        whole_px=int(size["height"]),
        tile_px=int(full["tile_size"]),
        least_tiles=int(full["min_patches"]),
        most_tiles=int(full["max_patches"]),
        colour=(red, green, blue),
    )


def _unlimited(full: Settings, source: str) -> PaddedWithTiles:
    size, longest = full["size"], max(full["size"].values())
    if full["crop_to_patches"]:
        return _padded_with_tiles(full, source)
    if longest <= int(full["maximum_pad_value"]):
        raise UnsupportedConfigError(
            f"{source}: crop_to_patches is false with size = {size!r} up to maximum_pad_value, where images are "
            "stretched; built are images that are padded: crop_to_patches true, or a larger size"
        )
    return _padded_with_tiles({**full, "crop_to_patches": True}, source).for_frames


DEEPSEEK_OCR2 = ImageProcessor(
    {
        **SHARED,
        "size": {"height": 1024, "width": 1024},
        "tile_size": 768,
        "crop_to_patches": True,
        "min_patches": 2,
        "max_patches": 6,
        "background_color": GREY,
        "image_mean": HALF,
        "image_std": HALF,
    },
    _padded_with_tiles,
)

UNLIMITED_OCR = ImageProcessor(
    {**DEEPSEEK_OCR2.defaults, "tile_size": 640, "max_patches": 32, "maximum_pad_value": 640}, _unlimited
)
