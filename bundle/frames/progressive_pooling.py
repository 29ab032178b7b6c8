"""Progressive pooling: every frame is there, coarser the more there are, within a visual context window.

After "Visual Context Window Extension" (Wei and Chen, 2024), where of each group of frames the first keeps a finer grid
of rows than the others, and strides grow until all fit into the window. Here a grid of s x s rows (P = s^2) becomes
k x k for the first of every four frames and m x m for the others, m at least half of k: the largest k that fits, then
the largest m. The paper also stretches positions beyond a model's context, which is not done: nothing leaves it here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from bundle.errors import ParameterError
from bundle.frames.budget import Budget
from bundle.frames.plan import FramePlan, Picture, Pooled

_GROUP_FRAMES = 4


def progressive_pooling(num_frames: int, budget: Budget) -> FramePlan:
    """Return a picture for each frame, and a place of as many rows as the window leaves to it.

    Raises:
        ParameterError: The encoder's rows are no square, or the window holds fewer tokens than there are frames.
    """
    side = math.isqrt(budget.tokens_per_image)
    if side * side != budget.tokens_per_image:
        raise ParameterError(
            f"progressive-pooling averages a square grid, and this model has {budget.tokens_per_image} tokens for an "
            "image; take another layout",
            "video.layout",
        )
    num_first = math.ceil(num_frames / _GROUP_FRAMES)
    for first, other in _sides(side):
        if num_first * first**2 + (num_frames - num_first) * other**2 <= budget.most_tokens:
            sides = [other if frame % _GROUP_FRAMES else first for frame in range(num_frames)]
            places = tuple(Pooled((frame,), each**2, frame) for frame, each in enumerate(sides))
            return FramePlan(tuple(Picture((frame,)) for frame in range(num_frames)), places)
    raise ParameterError(
        f"{num_frames} frames take {num_frames} tokens at least, and the video has {budget.most_tokens}; ask for fewer "
        "by num_frames, or for more tokens by visual_tokens",
        "video.visual_tokens",
    )


def _sides(side: int) -> Iterator[tuple[int, int]]:
    """Yield the grids' sides, of a group's first frame and of the others, the finest first."""
    for first in range(side, 0, -1):
        for other in range(first, max(first // 2, 1) - 1, -1):
            yield first, other
