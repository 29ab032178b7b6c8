"""Tiles encoded smaller: how many tokens that are, and where each of them stands."""

from __future__ import annotations

import numpy as np
import pytest

from bundle.errors import ParameterError
from bundle.image import TileLayout
from bundle.image_tokens import ShownImage
from quant.visual_tokens.resize import Resize


@pytest.mark.parametrize(
    ("keep", "side"), [(1.0, 8), (0.99, 7), (0.7656, 6), (49 / 64, 7), (0.5, 5), (0.25, 4), (0.1, 2), (0.001, 1)]
)
def test_a_side_is_the_root_of_the_share_rounded_down_and_never_none(keep: float, side: int) -> None:
    assert Resize(keep).seen_side(64) == side
    assert Resize(keep).quota(64) == side * side
    assert Resize(keep).num_kept(TileLayout(rows=2, cols=3), 64) == 7 * side * side


def test_every_token_stands_in_the_middle_of_what_it_covers() -> None:
    # of 4 x 4 places, each token of 2 x 2 covers 2 x 2, whose middle is the last one of them
    found = Resize(0.25).apply(ShownImage(np.zeros((1, 4, 3), np.float32), b"image", places_per_tile=16))
    assert found.rows.tolist() == [5, 7, 13, 15]
    one = Resize(0.0625).apply(ShownImage(np.zeros((2, 1, 3), np.float32), b"image", places_per_tile=16))
    assert one.rows.tolist() == [10, 26]  # of both tiles


@pytest.mark.parametrize("full", range(1, 12))
def test_places_rise_and_lie_in_the_tile(full: int) -> None:
    for side in range(1, full + 1):
        resize = Resize((side / full) ** 2)
        assert resize.seen_side(full * full) == side
        features = np.zeros((2, side * side, 3), np.float32)
        rows = resize.apply(ShownImage(features, b"image", places_per_tile=full * full)).rows
        assert len(rows) == 2 * side * side
        assert (np.diff(rows) > 0).all()
        assert 0 <= rows[0] <= rows[-1] < 2 * full * full


def test_what_differs_has_another_digest() -> None:
    features = np.zeros((1, 4, 3), np.float32)
    found = [
        Resize(keep).apply(ShownImage(features, digest, places_per_tile=places)).digest
        for keep, digest, places in ((0.25, b"a", 16), (0.25, b"b", 16), (0.12, b"a", 36))
    ]
    assert len(set(found)) == 3


def test_a_share_that_is_none_and_features_of_full_tiles_are_refused() -> None:
    for keep in (0, -1, 1.1, float("nan")):
        with pytest.raises(ParameterError, match=r"vision\.keep"):
            Resize(keep)
    with pytest.raises(ValueError, match="encoded smaller"):
        Resize(0.25).apply(ShownImage(np.zeros((1, 16, 3), np.float32), b"image", places_per_tile=16))
    with pytest.raises(ValueError, match="encoded smaller"):
        Resize(0.25).apply(ShownImage(np.zeros((1, 4, 3), np.float32), b"image"))
