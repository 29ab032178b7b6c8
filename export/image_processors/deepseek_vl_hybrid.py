"""DeepseekVLHybridImageProcessor: a large padded square, and a small one made of it."""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from bundle.image import Beside
from export.image_processors.deepseek_vl import DEEPSEEK_VL, padded
from export.image_processors.image_processor import CLIP_MEAN, CLIP_STD, Colours, ImageProcessor, Settings, colours


def _of_large(full: Settings, source: str) -> Colours:
    large = {"image_mean": full["high_res_image_mean"], "image_std": full["high_res_image_std"]}
    return colours({**full, **large}, source)


def _beside(full: Settings, source: str) -> Beside:
    if full["high_res_resample"] != full["resample"]:
        raise UnsupportedConfigError(
            f"{source}: high_res_resample {full['high_res_resample']!r} differs from resample {full['resample']!r}; "
            "built is the same for both"
        )
    large = padded({**full, "size": full["high_res_size"], "image_mean": full["high_res_image_mean"]}, source)
    return Beside(
        side_px=large.side_px,
        small_px=padded(full, source).side_px,
        colour=large.colour,
        least_px=large.least_px,
    )


DEEPSEEK_VL_HYBRID = ImageProcessor(
    {
        **DEEPSEEK_VL.defaults,
        "high_res_size": {"height": 1024, "width": 1024},
        "high_res_resample": 3,
        "high_res_image_mean": CLIP_MEAN,
        "high_res_image_std": CLIP_STD,
    },
    _beside,
    without_effect=frozenset({"high_res_background_color"}),
    colours=_of_large,
)
"""Pixels are normalised as those of the large square; the graph makes up for it in the small one."""
