"""AriaImageProcessor: the longer side of one of two lengths, padded."""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from bundle.image import WholePatches
from export.image_processors.image_processor import HALF, SHARED, ImageProcessor, Settings

LENGTHS_PX = (490, 980)
"""Of the longer side; transformers takes no others."""


def _whole_patches(full: Settings, source: str) -> WholePatches:
    longest = full["max_image_size"]
    if longest not in LENGTHS_PX or full["split_image"]:
        raise UnsupportedConfigError(
            f"{source}: max_image_size = {longest!r} with split_image = {full['split_image']!r}; built are "
            f"{' and '.join(map(str, LENGTHS_PX))}, and images that are not split"
        )
    return WholePatches(
        longest_px=longest,
        shortest_px=int(full["min_image_size"]),
        patch_px=int(full["patch_size"]),
        shorter_px=tuple(length for length in LENGTHS_PX if length < longest),
    )


ARIA = ImageProcessor(
    {
        **SHARED,
        "max_image_size": 980,
        "min_image_size": 336,
        "split_image": False,
        "patch_size": 14,
        "image_mean": HALF,
        "image_std": HALF,
    },
    _whole_patches,
    without_effect=frozenset({"split_resolutions", "split_ratio"}),  # of images that are split
)
