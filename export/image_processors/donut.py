"""DonutImageProcessor: a page in its shape, in the middle of one size."""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from bundle.image import Thumbnail
from export.image_processors.clip import sides_of
from export.image_processors.image_processor import HALF, SHARED, ImageProcessor, Settings


def _page(full: Settings, source: str) -> Thumbnail:
    """Return the page; of a list the width stands first, as the oldest files have it."""
    for key in ("do_thumbnail", "do_pad"):
        if not full[key]:
            raise UnsupportedConfigError(
                f"{source}: {key} is false; pages would have no one size, and only true is built"
            )
    if full["do_center_crop"]:
        raise UnsupportedConfigError(f"{source}: do_center_crop is true; only false is supported")
    size = full["size"]
    sides = (size[1], size[0]) if isinstance(size, (list, tuple)) else sides_of(size, "size", source)
    if not isinstance(sides, tuple):
        raise UnsupportedConfigError(f"{source}: size = {size!r} is not supported; give height and width")
    return Thumbnail(height_px=int(sides[0]), width_px=int(sides[1]), turns=bool(full["do_align_long_axis"]))


DONUT = ImageProcessor(
    {
        **SHARED,
        "size": {"height": 2560, "width": 1920},
        "resample": 2,
        "do_thumbnail": True,
        "do_align_long_axis": False,
        "do_pad": True,
        "do_center_crop": False,
        "image_mean": HALF,
        "image_std": HALF,
    },
    _page,
)
