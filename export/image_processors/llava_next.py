"""LlavaNextImageProcessor: tiles of the best of several grids, and the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bundle.errors import UnsupportedConfigError
from bundle.image import Pinpoints
from export.image_processors.clip import CLIP
from export.image_processors.image_processor import ImageProcessor, Settings, edge_of

PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
"""(height, width) of grids in pixels, where neither config nor processor names any."""


def grids_of(pinpoints: Any, tile_px: int, source: str) -> tuple[tuple[int, int], ...]:
    """Return (rows, cols) of `image_grid_pinpoints`.

    Raises:
        UnsupportedConfigError: They are no list of pairs, or one is no whole number of tiles.
    """
    if not _are_pairs(pinpoints):
        raise UnsupportedConfigError(
            f"{source}: image_grid_pinpoints = {pinpoints!r} is not supported; give pairs of height and width"
        )
    for height, width in pinpoints:
        if height % tile_px or width % tile_px:
            raise UnsupportedConfigError(
                f"{source}: image_grid_pinpoints holds {height} x {width}, which is no whole number of tiles of "
                f"{tile_px} pixels"
            )
    return tuple((height // tile_px, width // tile_px) for height, width in pinpoints)


def _are_pairs(pinpoints: Any) -> bool:
    return isinstance(pinpoints, Sequence) and all(
        isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(edge, int) for edge in pair)
        for pair in pinpoints
    )


def pinpoints(full: Settings, source: str) -> Pinpoints:
    """Return the geometry of a processor of that kind, whose tiles are squares that are neither scaled nor cropped."""
    size, crop = full["size"], full["crop_size"]
    edge = edge_of(size)
    # what is cut into tiles of crop_size would be scaled to size, whatever do_center_crop says
    if edge is None or (crop is not None and edge_of(crop) != edge):
        raise UnsupportedConfigError(
            f"{source}: size {size} with crop_size {crop}; built are square tiles of one size, which both give"
        )
    return Pinpoints(tile_px=edge, grids=grids_of(full["image_grid_pinpoints"], edge, source))


LLAVA_NEXT = ImageProcessor({**CLIP.defaults, "image_grid_pinpoints": PINPOINTS, "do_pad": True}, pinpoints)
