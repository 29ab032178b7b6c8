"""Glm46VImageProcessor: as Qwen2-VL's, with bounds of an image as of so many equal frames."""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from bundle.image import Area
from export.image_processors.image_processor import ImageProcessor, Settings
from export.image_processors.qwen2_vl import QWEN2_VL


def _area(full: Settings, source: str) -> Area:
    size, num_frames = full["size"], int(full["temporal_patch_size"])
    least, most = size.get("shortest_edge"), size.get("longest_edge")
    if not isinstance(least, int) or not isinstance(most, int) or least % num_frames or most % num_frames:
        raise UnsupportedConfigError(
            f"{source}: size = {size!r}: wanted are shortest_edge and longest_edge, areas of {num_frames} equal "
            f"frames, multiples of {num_frames}"
        )
    return Area(
        step_px=int(full["patch_size"]) * int(full["merge_size"]),
        least_px=least // num_frames,
        most_px=most // num_frames,
        grows_whole=True,
    )


_OF_QWEN = ("min_pixels", "max_pixels")
GLM46V = ImageProcessor(
    {
        **{name: value for name, value in QWEN2_VL.defaults.items() if name not in _OF_QWEN},
        "size": {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000},
    },
    _area,
)
