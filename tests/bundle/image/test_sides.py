"""How long sides are said to be, against the sizes that images really become."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest

from bundle.errors import ImageError
from bundle.image.area import Area
from bundle.image.bounded import Bounded
from bundle.image.canvas import Canvas
from bundle.image.fixed import Fixed
from bundle.image.geometry import Geometry
from bundle.image.longest_edge import LongestEdge
from bundle.image.most_patches import MostPatches
from bundle.image.padded_patches import PaddedPatches
from bundle.image.shortest_edge import ShortestEdge
from bundle.image.split_area import SplitArea

FREE: dict[str, Geometry] = {
    "area": Area(step_px=8, least_px=256, most_px=4096),
    "growing area": Area(step_px=28, least_px=784, most_px=100_000, grows=True),
    "most patches": MostPatches(patch_px=4, most_patches=60),
    "longest edge": LongestEdge(longest_px=92, step_px=12),
    "padded patches": PaddedPatches(height_px=48, width_px=96, patch_px=12, colour=(1, 1, 1)),
    "longest edge, always": LongestEdge(longest_px=96, step_px=12, scaling="always"),
    "longest edge, in steps": LongestEdge(longest_px=96, step_px=12, scaling="in steps"),
    "canvas": Canvas(tile_px=16, most_tiles=4),
    "bounded": Bounded(shortest_px=20, longest_px=50, splits=True),
    "shortest edge": ShortestEdge(shortest_px=32, longest_px=56, step_px=8),
    "split area": SplitArea(
        step_px=8, patch_px=4, least_px=256, most_px=1024, tolerance=2.5, tile_px=32, least_tiles=2, most_tiles=6
    ),
}
IMAGES = [(int(width), int(height)) for width, height in np.random.default_rng(1).integers(20, 400, (60, 2))]
IMAGES += [(20, 390), (390, 20), (2000, 2000), (37, 37)]


def sizes_of(geometry: Geometry) -> list[tuple[int, int]]:
    """Return (height, width) of every tile of some images."""
    found = []
    for image in IMAGES:
        with suppress(ImageError):  # too narrow for some
            found.append(geometry.layout(*image).whole_px)
    return [each for each in found if each is not None]


@pytest.mark.parametrize("kind", FREE)
def test_no_side_is_shorter_longer_or_between_steps(kind: str) -> None:
    sides, found = FREE[kind].sides, sizes_of(FREE[kind])
    assert sides is not None
    assert len(set(found)) > 2
    for height, width in found:
        assert sides.least_px <= min(height, width)
        assert max(height, width) <= sides.longest_px
        assert not height % sides.step_px
        assert not width % sides.step_px


@pytest.mark.parametrize("kind", FREE)
def test_the_square_is_the_largest_that_a_square_image_becomes(kind: str) -> None:
    sides = FREE[kind].sides
    assert sides is not None
    squares = {FREE[kind].layout(side, side).whole_px for side in range(20, 2000, 20)}
    largest = max(whole[0] for whole in squares if whole is not None)
    assert largest in {sides.square_px, sides.square_px - sides.step_px} or kind == "split area"  # whose tile is larger
    assert largest <= sides.square_px


def test_images_of_one_size_have_no_sides_to_choose() -> None:
    assert Fixed(height_px=8, width_px=8).sides is None
    assert Canvas(tile_px=16, most_tiles=1).sides is None
    assert ShortestEdge(shortest_px=32, longest_px=56, step_px=8, crop_px=32).sides is None
