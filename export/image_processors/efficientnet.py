"""EfficientNetImageProcessor: stretched, cropped, and bytes that may be brought to -1 to 1 by themselves."""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from bundle.image import Fixed, StretchedCrop
from export.image_processors.clip import sides_of
from export.image_processors.image_processor import HALF, SHARED, Colours, ImageProcessor, Settings, colours


def _geometry(full: Settings, source: str) -> Fixed | StretchedCrop:
    size = sides_of(full["size"], "size", source)
    crop = sides_of(full["crop_size"], "crop_size", source) if full["do_center_crop"] else size
    if not isinstance(size, tuple) or not isinstance(crop, tuple):
        raise UnsupportedConfigError(f"{source}: size {full['size']!r} has no height and width")
    if crop == size:
        return Fixed(height_px=size[0], width_px=size[1])
    return StretchedCrop(stretched_px=size, height_px=crop[0], width_px=crop[1])


def _colours(full: Settings, source: str) -> Colours:
    if full["include_top"]:
        raise UnsupportedConfigError(
            f"{source}: include_top is true (colours are divided by image_std once more, for a classifier); only false "
            "is supported"
        )
    plain = colours({**full, "do_normalize": True}, source)
    mean, std = (plain.mean, plain.std) if full["do_normalize"] else ((0.0,) * 3, (1.0,) * 3)
    less = 1.0 if full["rescale_offset"] else 0.0
    red, green, blue = (each + less for each in mean)
    return Colours(plain.rescale_factor, (red, green, blue), std)


EFFICIENTNET = ImageProcessor(
    {
        **SHARED,
        "size": {"height": 346, "width": 346},
        "do_center_crop": False,
        "crop_size": {"height": 289, "width": 289},
        "image_mean": HALF,
        "image_std": HALF,
        "rescale_offset": False,
        "include_top": True,
    },
    _geometry,
    colours=_colours,
)
