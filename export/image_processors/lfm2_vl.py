"""Lfm2VlImageProcessor: an image in its shape; a large one in tiles as well."""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from bundle.image import SplitArea
from export.image_processors.image_processor import HALF, SHARED, ImageProcessor, Settings


def _split_area(full: Settings, source: str) -> SplitArea:
    patch, factor = int(full["encoder_patch_size"]), int(full["downsample_factor"])
    least_tiles, most_tiles = int(full["min_tiles"]), int(full["max_tiles"])
    is_split = bool(full["do_image_splitting"]) and most_tiles > 1
    if is_split and not full["use_thumbnail"]:
        raise UnsupportedConfigError(
            f"{source}: use_thumbnail is false while images are split; built are tiles with the whole image behind them"
        )
    if is_split and least_tiles < 2:
        raise UnsupportedConfigError(
            f"{source}: min_tiles {least_tiles}: an image that is cut into a single tile would be written with the "
            "tokens of another size; 2 or more are built"
        )
    step = patch * factor
    return SplitArea(
        step_px=step,
        patch_px=patch,
        least_px=int(full["min_image_tokens"]) * step**2,
        most_px=int(full["max_image_tokens"]) * step**2,
        tolerance=float(full["max_pixels_tolerance"]),
        tile_px=int(full["tile_size"]),
        least_tiles=least_tiles if is_split else 1,
        most_tiles=most_tiles if is_split else 1,
    )


LFM2_VL = ImageProcessor(
    {
        **SHARED,
        "resample": 2,
        "size": {"height": 512, "width": 512},  # images are scaled by their tokens, never to it
        "downsample_factor": 2,
        "do_image_splitting": True,
        "min_tiles": 2,
        "max_tiles": 10,
        "use_thumbnail": True,
        "min_image_tokens": 64,
        "max_image_tokens": 256,
        "encoder_patch_size": 16,
        "tile_size": 512,
        "max_pixels_tolerance": 2.0,
        "max_num_patches": 1024,  # to which patches are padded, which are not padded here
        "do_pad": True,
        "image_mean": HALF,
        "image_std": HALF,
    },
    _split_area,
)
