"""DeepseekVLImageProcessor: the longer side is scaled, and the image padded to a square of the mean colour."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from bundle.image import Padded
from export.image_processors.image_processor import CLIP_MEAN, CLIP_STD, SHARED, ImageProcessor, Settings, background


def padded(full: Settings, source: str) -> Padded:
    """Return the geometry of a processor of that kind.

    Raises:
        UnsupportedConfigError: Images are no squares.
    """
    size = full["size"]
    if not full["do_pad"] or not isinstance(size, Mapping) or set(size) != {"height", "width"}:
        raise UnsupportedConfigError(
            f"{source}: size = {size!r}, do_pad {full['do_pad']!r}; built are height and width, padded"
        )
    if size["height"] != size["width"]:
        raise UnsupportedConfigError(f"{source}: size = {size!r}; such processors make squares")
    return Padded(
        side_px=int(size["height"]),
        colour=background(full, source),
        scales_first=True,
        least_px=int(full["min_size"]),
    )


DEEPSEEK_VL = ImageProcessor(
    {
        **SHARED,
        "size": {"height": 384, "width": 384},
        "min_size": 14,
        "do_pad": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
    padded,
)
