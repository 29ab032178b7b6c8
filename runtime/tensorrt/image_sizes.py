"""The sizes of images that an engine is built for, where a model's images keep their shape."""

from __future__ import annotations

from bundle import tensors
from bundle.directory import Bundle
from bundle.errors import SettingsError
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.image.geometry import Sides
from runtime.limits import ImageSizes

_LONGEST_PX = 2048
"""Of a side where nobody says: memory of a run is planned for a square of the longest side."""


def try_image_sizes(bundle: Bundle, longest_px: int | None = None) -> ImageSizes | None:
    """Return the least, usual and largest (height, width) of what a bundle's encoder is given; None: it sees no images.

    Args:
        bundle: Of any task.
        longest_px: Of a side; None: twice the side of the largest square, 2,048 at most.

    Raises:
        SettingsError: No image of the model is so small, or its images have one size, whatever somebody asks for.
    """
    components = bundle.manifest.components.values()
    sees_images = any(spec.name == tensors.PIXEL_VALUES for component in components for spec in component.inputs)
    spec = ImageSpec.read(bundle.path(PREPROCESSOR)) if sees_images else None
    if longest_px is not None and (spec is None or spec.geometry.sides is None):
        told = "sees no images" if spec is None else "has images of one size, {1} x {0} px".format(*spec.tile_size_px)
        raise SettingsError(f"--max-image-side {longest_px}: {bundle.name} {told}; leave it out")
    if spec is None:
        return None
    sides, usual = spec.geometry.sides, spec.tile_size_px
    if sides is None:
        return usual, usual, usual
    longest = _longest(sides, longest_px)
    if longest < sides.least_px:
        raise SettingsError(
            f"--max-image-side {longest_px}: the shortest side of an image of {bundle.name} is {sides.least_px} px"
        )
    height, width = (max(sides.least_px, min(side, longest)) for side in usual)
    return (sides.least_px, sides.least_px), (height, width), (longest, longest)


def _longest(sides: Sides, longest_px: int | None) -> int:
    """Return the longest side that an engine takes, in whole steps."""
    wanted = min(2 * sides.square_px, _LONGEST_PX) if longest_px is None else longest_px
    return min(wanted, sides.longest_px) // sides.step_px * sides.step_px
