from __future__ import annotations

import numpy as np
import pytest

from pages.marks import OUTLINES, STAR, mark


def area(outline) -> float:
    """By the shoelace formula."""
    x, y = np.array(outline).T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


@pytest.mark.parametrize("outline", [*OUTLINES, STAR])
def test_outlines_lie_about_their_point_and_are_of_about_one_size(outline) -> None:
    assert np.mean(outline, axis=0) == pytest.approx([0, 0], abs=1e-9)
    assert np.abs(outline).max() < 1.5
    assert 1.5 <= area(outline) <= np.pi + 0.1


def test_no_two_outlines_are_alike() -> None:
    assert len({tuple(np.round(outline, 6).ravel()) for outline in (*OUTLINES, STAR)}) == len(OUTLINES) + 1


def test_a_hollow_mark_shows_the_ground_inside_its_colour() -> None:
    full, hollow = (mark(STAR, (10, 20), "good", is_filled=is_filled, radius_px=2) for is_filled in (True, False))
    assert (full.fill, full.edge, hollow.fill, hollow.edge) == ("good", "good", "ground", "good")
    assert np.mean(full.points, axis=0) == pytest.approx([10, 20])
    assert np.abs(np.subtract(full.points, (10, 20))).max() == pytest.approx(2 * np.abs(STAR).max())
