"""Frames are chosen evenly in time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import ParameterError
from bundle.frames.options import FrameOptions
from bundle.frames.sampling import chosen_frames


@given(num=st.integers(1, 400), wanted=st.integers(1, 64), fps=st.sampled_from([1.0, 24.0, 29.97, 30.0, 1 / 3]))
def test_of_evenly_spaced_frames_every_so_many_is_chosen(num: int, wanted: int, fps: float) -> None:
    """As `SmolVLMVideoProcessor.sample_frames` and vLLM's loaders do, whose float64 is one frame early at times."""
    times = [index / fps for index in range(num)]
    found = chosen_frames(times, num / fps, FrameOptions(num_frames=wanted, most_frames=64))
    count = min(wanted, num)
    assert list(found) == [at * (num - 1) // max(count - 1, 1) for at in range(count)]
    rounded = np.linspace(0, num - 1, count, dtype=int)
    assert np.abs(rounded - found).max() <= 1


def test_a_frame_that_stands_for_long_is_there_once() -> None:
    times = [0.0, 0.1, 0.2, 10.0]
    assert chosen_frames(times, 10.1, FrameOptions(num_frames=3)) == (0, 2, 3)


@given(
    delays=st.lists(st.floats(0.02, 5), min_size=1, max_size=80),
    num_frames=st.none() | st.integers(1, 70),
    fps=st.none() | st.floats(0.01, 60),
)
def test_whatever_is_asked_the_frames_ascend_and_are_no_more_than_allowed(delays, num_frames, fps) -> None:
    times = np.concatenate([[0.0], np.cumsum(delays)[:-1]]).tolist()
    options = FrameOptions(num_frames=num_frames, fps=fps, most_frames=40)
    asked = [each for each in (num_frames, None if fps is None else round(fps * sum(delays))) if each is not None]
    if min([len(times), *asked]) > 40:
        with pytest.raises(ParameterError, match="at most 40"):
            chosen_frames(times, sum(delays), options)
        return
    found = chosen_frames(times, sum(delays), options)
    assert 1 <= len(found) <= min(40, len(times), num_frames or 40)
    assert list(found) == sorted(set(found))
    assert found[-1] < len(times)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (FrameOptions(fps=1.0), 3),
        (FrameOptions(fps=2.0), 6),
        (FrameOptions(fps=100.0), 30),
        (FrameOptions(fps=0.01), 1),
        (FrameOptions(fps=2.0, num_frames=4), 4),
        (FrameOptions(), 30),
    ],
)
def test_frames_a_second_count_by_the_duration(options: FrameOptions, expected: int) -> None:
    assert len(chosen_frames([index / 10 for index in range(30)], 3.0, options)) == expected


def test_more_frames_than_allowed_are_refused_with_the_number() -> None:
    with pytest.raises(ParameterError, match=r"300 frames in 10 s make 300 frames to look at; at most 64"):
        chosen_frames([index / 30 for index in range(300)], 10.0, FrameOptions())
