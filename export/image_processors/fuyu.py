"""FuyuImageProcessor: an image shrunk to fit a frame, of which the patches that it touches are kept."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from bundle.image import PaddedPatches
from export.image_processors.image_processor import SHARED, Colours, ImageProcessor, Settings, colours, edge_of


def _padded_patches(full: Settings, source: str) -> PaddedPatches:
    size, patch, value = full["size"], edge_of(full["patch_size"]), full["padding_value"]
    height, width = (size.get("height"), size.get("width")) if isinstance(size, Mapping) else (None, None)
    if patch is None or not isinstance(height, int) or not isinstance(width, int):
        raise UnsupportedConfigError(
            f"{source}: size = {size!r} with patch_size = {full['patch_size']!r}; built are a height and a width, and "
            "square patches"
        )
    if not full["do_pad"] or full["padding_mode"] != "constant":
        raise UnsupportedConfigError(
            f"{source}: do_pad = {full['do_pad']!r}, padding_mode = {full['padding_mode']!r}; built is padding of one "
            "colour, without which images are no whole patches"
        )
    if not isinstance(value, (int, float)) or not 0 <= value < 256:
        raise UnsupportedConfigError(f"{source}: padding_value = {value!r}; images are padded with a byte, 0 to 255")
    # of bytes: what is padded is not yet rescaled
    return PaddedPatches(height_px=height, width_px=width, patch_px=patch, colour=(int(value),) * 3)


def _colours(full: Settings, source: str) -> Colours:
    """Return the colours; a mean and a deviation may be one number for all channels."""
    means = {key: full[key] for key in ("image_mean", "image_std")}
    spread = {key: (value,) * 3 if isinstance(value, (int, float)) else value for key, value in means.items()}
    return colours({**full, **spread}, source)


FUYU = ImageProcessor(
    {
        **SHARED,
        "size": {"height": 1080, "width": 1920},
        "patch_size": {"height": 30, "width": 30},
        "resample": 2,
        "do_pad": True,
        "padding_value": 1.0,
        "padding_mode": "constant",
        "image_mean": 0.5,
        "image_std": 0.5,
    },
    _padded_patches,
    colours=_colours,
)
