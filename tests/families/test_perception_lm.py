"""Grids of Perception LM are those that transformers' own class chooses."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bundle.image import CanvasGrid


@pytest.mark.parametrize(("tile_px", "most_tiles"), [(16, 6), (20, 36), (448, 1)])
@settings(max_examples=80, deadline=None)
@given(width=st.integers(1, 900), height=st.integers(1, 900))
@example(width=16, height=16)
@example(width=40, height=20)
@example(width=120, height=120)
@example(width=900, height=1)
@example(width=1, height=900)
def test_grids_are_the_reference_s(
    families: dict[str, ModuleType], tile_px: int, most_tiles: int, width: int, height: int
) -> None:
    expected = families["perception_lm"].canvas_of(width, height, tile_px, most_tiles)
    layout = CanvasGrid(tile_px=tile_px, most_tiles=most_tiles).layout(width, height)
    assert (layout.cols, layout.rows) == expected
