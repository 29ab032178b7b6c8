"""What an image processor class of transformers is: its settings with their defaults, and the geometry they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bundle.errors import UnsupportedConfigError
from bundle.image import KnownGeometry

Settings = Mapping[str, Any]

SHARED: Settings = {
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
"""Defaults of most classes; bicubic is 3."""
HALF = (0.5, 0.5, 0.5)
"""Mean and deviation of what most classes normalise by."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def background(full: Settings, source: str) -> tuple[int, int, int]:
    """Return the colour R, G, B that a processor pads with: the mean of what it was trained on, as bytes.

    Raises:
        UnsupportedConfigError: `image_mean` is no three numbers from 0 to 1.
    """
    mean = full["image_mean"]
    if not isinstance(mean, Sequence) or len(mean) != 3 or not all(0 <= each <= 1 for each in mean):
        raise UnsupportedConfigError(
            f"{source}: image_mean = {mean!r}; images are padded with three numbers from 0 to 1"
        )
    return int(mean[0] * 255), int(mean[1] * 255), int(mean[2] * 255)


def edge_of(size: Any) -> int | None:
    """Return the edge of the square that a size of any form says; None of what is none."""
    edges = set(size.values()) if isinstance(size, Mapping) else {size}
    edge = edges.pop() if len(edges) == 1 else None
    return edge if isinstance(edge, int) else None


@dataclass(frozen=True)
class Colours:
    """How a byte becomes a number, as `bundle.image.ImageSpec` has it."""

    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def colours(full: Settings, source: str) -> Colours:
    """Return the colours of most classes.

    Raises:
        UnsupportedConfigError: They are not normalised, or not by three numbers.
    """
    if not full["do_normalize"]:
        raise UnsupportedConfigError(f"{source}: do_normalize is false; only true is supported")
    mean, std = (_per_channel(full[key], key, source) for key in ("image_mean", "image_std"))
    return Colours(float(full["rescale_factor"]), mean, std)


def colours_where_asked(full: Settings, source: str) -> Colours:
    """Return the colours of classes whose checkpoints need not normalise: then bytes become numbers from 0 to 1.

    Raises:
        UnsupportedConfigError: They are normalised, and not by three numbers.
    """
    if full["do_normalize"]:
        return colours(full, source)
    return Colours(float(full["rescale_factor"]), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def _per_channel(value: Any, key: str, source: str) -> tuple[float, float, float]:
    if isinstance(value, (list, tuple)) and len(value) == 3:
        return float(value[0]), float(value[1]), float(value[2])
    raise UnsupportedConfigError(f"{source}: {key} = {value!r}; three numbers are needed, for R, G and B")


@dataclass(frozen=True)
class ImageProcessor:
    """One class; a file each, and a line in `export.image_processors.table`.

    Attributes:
        defaults: Every setting that changes pixels, with the default that it has in transformers.
        geometry: Settings, all of them there, and where they were read, to the geometry.
        without_effect: Settings of this class that change other things than `pixel_values`.
        colours: The same to how a byte becomes a number.

    Raises (from `geometry` and `colours`):
        UnsupportedConfigError: A value that is not reproduced; it names the setting.
    """

    defaults: Settings
    geometry: Callable[[Settings, str], KnownGeometry]
    without_effect: frozenset[str] = frozenset()
    colours: Callable[[Settings, str], Colours] = colours
