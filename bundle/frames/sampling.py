"""Which frames of a video are looked at: evenly in time, from its first to its last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bundle.errors import ParameterError
from bundle.frames.options import FrameOptions

_ROUNDING_S = 1e-6
"""Frames' times are sums of fractions; a moment that falls on a frame is to find that frame."""


def chosen_frames(times_s: Sequence[float], duration_s: float, options: FrameOptions) -> tuple[int, ...]:
    """Return the indices of the frames that are looked at, ascending.

    Of n moments evenly between the first frame's time and the last one's, each finds the frame that is shown then, so
    that a frame which stands for long is there once. Where N frames are evenly spaced, these are the frames
    i (N - 1) / (n - 1), rounded down, which SmolVLM and vLLM choose.

    Args:
        times_s: Of every frame, ascending.
        duration_s: Of the video.
        options: `num_frames` and `fps`; where both are given, the fewer frames count.

    Raises:
        ParameterError: More frames than allowed are asked for.
    """
    wanted = _num_wanted(len(times_s), duration_s, options)
    if wanted > options.most_frames:
        raise ParameterError(
            f"the video's {len(times_s)} frames in {duration_s:g} s make {wanted} frames to look at; at most "
            f"{options.most_frames} are. Ask for fewer by num_frames.",
            "video.num_frames",
        )
    if wanted == len(times_s):
        return tuple(range(wanted))
    moments = np.linspace(times_s[0], times_s[-1], wanted) + _ROUNDING_S
    found = np.searchsorted(np.asarray(times_s), moments, side="right") - 1
    return tuple(np.unique(found).tolist())


def _num_wanted(num_frames: int, duration_s: float, options: FrameOptions) -> int:
    wanted = num_frames
    if options.num_frames is not None:
        wanted = min(wanted, options.num_frames)
    if options.fps is not None:
        wanted = min(wanted, max(round(options.fps * duration_s), 1))
    return wanted
