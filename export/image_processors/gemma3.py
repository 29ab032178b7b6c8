"""Gemma3ImageProcessor: every image stretched to one size, and where asked long ones in crops as well."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from bundle.image import Fixed, PanAndScan
from export.image_processors.image_processor import HALF, SHARED, ImageProcessor, Settings


def _pan_and_scan(full: Settings, source: str) -> Fixed | PanAndScan:
    size = full["size"]
    if not isinstance(size, Mapping) or set(size) != {"height", "width"}:
        raise UnsupportedConfigError(f"{source}: size = {size!r} is not supported; give height and width")
    height, width = int(size["height"]), int(size["width"])
    if not full["do_pan_and_scan"]:
        return Fixed(height_px=height, width_px=width)
    return PanAndScan(
        height_px=height,
        width_px=width,
        least_crop_px=int(full["pan_and_scan_min_crop_size"]),
        most_crops=int(full["pan_and_scan_max_num_crops"]),
        least_ratio=float(full["pan_and_scan_min_ratio_to_activate"]),
    )


GEMMA3 = ImageProcessor(
    {
        **SHARED,
        "resample": 2,
        "size": {"height": 224, "width": 224},
        "image_mean": HALF,
        "image_std": HALF,
        # What the processor says, which takes other values of its caller alone; published files leave these null, and
        # here what a file says counts.
        "do_pan_and_scan": False,
        "pan_and_scan_min_crop_size": 256,
        "pan_and_scan_max_num_crops": 4,
        "pan_and_scan_min_ratio_to_activate": 1.2,
    },
    _pan_and_scan,
)
