"""Layouts: their arithmetic, and what they make of features, against plain sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import ParameterError
from bundle.frames.options import FrameOptions
from bundle.frames.plan import FramePlan, Picture, Pooled, Sampled, Whole
from bundle.frames.table import LAYOUTS, check_options, plan_of


def planned(
    layout: str, num_frames: int, tokens: int = 16, budget: int | None = None, context: int = 4096
) -> FramePlan:
    return plan_of(num_frames, FrameOptions(layout=layout, visual_tokens=budget), tokens, context)


def features(num_pictures: int, tokens: int, width: int = 3) -> list[np.ndarray]:
    return list(np.random.default_rng(0).standard_normal((num_pictures, tokens, width)).astype(np.float32))


@given(layout=st.sampled_from(sorted(LAYOUTS)), num_frames=st.integers(1, 70), side=st.integers(2, 9))
def test_a_plan_counts_the_rows_that_it_fills(layout: str, num_frames: int, side: int) -> None:
    plan = planned(layout, num_frames, side * side)
    given_features = features(len(plan.pictures), side * side)
    for place in plan.places:
        rows = place.filled([given_features[picture] for picture in place.pictures])
        assert rows.shape == (place.num_tokens, 3)
        assert rows.dtype == np.float32
    assert plan.num_tokens == sum(place.num_tokens for place in plan.places)
    assert sorted({frame for picture in plan.pictures for frame in picture.frames}) == list(range(num_frames))


def test_uniform_is_every_frame_whole() -> None:
    plan = planned("uniform", 5)
    assert plan.pictures == tuple(Picture((frame,)) for frame in range(5))
    assert plan.num_tokens == 5 * 16
    assert plan.tells_times


@pytest.mark.parametrize(
    ("num", "grid"), [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (4, (2, 2)), (6, (2, 3)), (8, (3, 3))]
)
def test_a_grid_is_one_image_of_all_frames(num: int, grid: tuple[int, int]) -> None:
    plan = planned("image-grid", num)
    (picture,) = plan.pictures
    assert ((picture.rows, picture.cols), picture.frames, plan.num_tokens) == (grid, tuple(range(num)), 16)
    assert not plan.tells_times


@given(num=st.integers(1, 4000))
def test_a_grid_has_room_for_all_and_no_empty_row(num: int) -> None:
    picture = Picture.grid(range(num))
    assert picture.rows * picture.cols >= num > (picture.rows - 1) * picture.cols
    assert 0 <= picture.cols - picture.rows <= 1


def test_thumbnail_and_sampling_is_a_grid_of_six_and_even_rows_of_all() -> None:
    plan = planned("thumbnail-and-sampling", 12, 16, budget=40)
    assert plan.pictures[0] == Picture((0, 2, 4, 6, 8, 11), 2, 3)
    whole, sampled = plan.places
    assert (whole, plan.num_tokens) == (Whole((0,), 16), 40)
    given_features = features(13, 16)
    rows = np.concatenate(given_features[1:])
    expected = [rows[math.floor(index * (12 * 16 - 1) / 23 + 1e-9)] for index in range(24)]
    np.testing.assert_array_equal(sampled.filled([given_features[picture] for picture in sampled.pictures]), expected)


def test_its_default_is_six_images_worth_and_never_more_than_there_is() -> None:
    assert planned("thumbnail-and-sampling", 30).num_tokens == 6 * 16
    assert planned("thumbnail-and-sampling", 30, context=128).num_tokens == 64
    assert planned("thumbnail-and-sampling", 2).num_tokens == 3 * 16


def test_pooling_means_over_cells() -> None:
    (grid,) = features(1, 64)
    place = Pooled((0,), 16, 0)
    expected = grid.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3)).reshape(16, 3)
    np.testing.assert_allclose(place.filled([grid]), expected, rtol=1e-5, atol=1e-6)  # sums of four floats
    np.testing.assert_allclose(Pooled((0,), 1, 0).filled([grid])[0], grid.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(Pooled((0,), 64, 0).filled([grid]), grid)


@pytest.mark.parametrize("side", [3, 5, 8, 27])
@pytest.mark.parametrize("smaller", [1, 2, 3])
def test_pooling_is_adaptive_as_torch_has_it(side: int, smaller: int) -> None:
    torch = pytest.importorskip("torch")
    (grid,) = features(1, side * side)
    image = torch.from_numpy(grid.T.reshape(1, 3, side, side))
    expected = torch.nn.functional.adaptive_avg_pool2d(image, smaller).numpy().reshape(3, -1).T
    found = Pooled((0,), smaller * smaller, 0).filled([grid])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)  # float32 sums in another order


def test_progressive_pooling_keeps_what_fits_the_window_and_the_first_of_each_group_finer() -> None:
    fine = [place.num_tokens for place in planned("progressive-pooling", 8, 64, budget=8 * 64).places]
    assert fine == [64] * 8
    tokens = [place.num_tokens for place in planned("progressive-pooling", 8, 64, budget=300).places]
    assert tokens == [64, 25, 25, 25] * 2  # 2 x 64 + 6 x 25 = 278; 6 x 36 would be 344
    coarse = [place.num_tokens for place in planned("progressive-pooling", 8, 64, budget=8).places]
    assert coarse == [1] * 8


@given(num=st.integers(1, 300), side=st.integers(1, 27), budget=st.integers(1, 3000))
def test_progressive_pooling_never_leaves_its_window(num: int, side: int, budget: int) -> None:
    if num > budget:
        with pytest.raises(ParameterError) as told:
            planned("progressive-pooling", num, side * side, budget=budget)
        assert told.value.param == "video.visual_tokens"
        return
    plan = planned("progressive-pooling", num, side * side, budget=budget)
    assert plan.num_tokens <= budget
    assert [place.frame for place in plan.places] == list(range(num))


def test_the_window_is_half_of_the_context_where_nothing_is_said() -> None:
    assert planned("progressive-pooling", 16, 64, context=1024).num_tokens <= 512


@pytest.mark.parametrize(
    ("layout", "num", "tokens", "budget", "problem"),
    [
        ("spiral", 3, 16, None, "must be one of uniform, thumbnail-and-sampling"),
        ("uniform", 3, 16, 20, "visual_tokens is for"),
        ("image-grid", 3, 16, 20, "visual_tokens is for"),
        ("thumbnail-and-sampling", 3, 16, 16, "thumbnail alone takes 16"),
        ("progressive-pooling", 3, 17, None, "averages a square grid, and this model has 17"),
        ("progressive-pooling", 30, 16, 29, "30 frames take 30 tokens at least"),
    ],
)
def test_what_cannot_be_laid_out_is_refused_by_name(layout, num, tokens, budget, problem) -> None:
    with pytest.raises(ParameterError, match=problem) as told:
        planned(layout, num, tokens, budget)
    assert told.value.param in ("video.layout", "video.visual_tokens")


def test_every_layout_is_taken_with_nothing_else() -> None:
    for layout in LAYOUTS:
        check_options(FrameOptions(layout=layout))


def test_the_key_of_a_place_tells_pictures_and_what_is_made_of_them() -> None:
    places = [Whole((0,), 16), Pooled((0,), 16, 0), Pooled((0,), 9, 0), Sampled((0,), 16), Sampled((0,), 9)]
    keys = {place.key([key]) for place in places for key in (b"a" * 32, b"b" * 32)}
    assert len(keys) == 2 * len(places)
    assert Whole((0,), 16).key([b"a"]) == b"a"
