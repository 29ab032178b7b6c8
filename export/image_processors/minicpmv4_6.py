"""MiniCPMV4_6ImageProcessor and MiniCPMOcrImageProcessor: an image at an area of its own; a large one in slices too."""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from bundle.image import Sliced
from export.image_processors.image_processor import HALF, SHARED, ImageProcessor, Settings

PATCHES_A_TOKEN = {"16x": 4, "4x": 2}
"""Along a side, by `downsample_mode`."""


def _sliced(full: Settings, source: str) -> Sliced:
    mode = full["downsample_mode"]
    if mode not in PATCHES_A_TOKEN:
        raise UnsupportedConfigError(f"{source}: downsample_mode {mode!r}; built are {', '.join(PATCHES_A_TOKEN)}")
    step, edge = int(full["patch_size"]) * PATCHES_A_TOKEN[mode], int(full["scale_resolution"])
    if edge % step:
        raise UnsupportedConfigError(
            f"{source}: scale_resolution {edge} is no multiple of the {step} px that a token stands for"
        )
    return Sliced(step_px=step, tile_px=edge, most_slices=int(full["max_slice_nums"]) if full["slice_mode"] else 1)


def _small_as_asked(full: Settings, source: str) -> Sliced:
    how = full["small_image_upsize"]
    if how not in ("always", "never"):
        raise UnsupportedConfigError(
            f"{source}: small_image_upsize {how!r} takes sizes by the letters that OpenCV finds in an image, which is "
            "not built; set it to always (small images are made larger, and take more tokens) or never"
        )
    return _sliced(full, source).model_copy(update={"grows": how == "always"})


MINICPMV4_6 = ImageProcessor(
    {
        **SHARED,
        "max_slice_nums": 9,
        "scale_resolution": 448,
        "patch_size": 14,
        "slice_mode": True,
        "downsample_mode": "16x",
        "image_mean": HALF,
        "image_std": HALF,
    },
    _sliced,
    without_effect=frozenset({"use_image_id"}),  # a prompt's
)
MINICPM_OCR = ImageProcessor(
    {**MINICPMV4_6.defaults, "downsample_mode": "4x", "small_image_upsize": "always"},
    _small_as_asked,
    without_effect=MINICPMV4_6.without_effect,
)
