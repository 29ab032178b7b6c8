"""Uniform: every frame is an image, as SmolVLM and most video models have it. n P tokens."""

from __future__ import annotations

from bundle.frames.budget import Budget
from bundle.frames.plan import FramePlan, Picture, Whole


def uniform(num_frames: int, budget: Budget) -> FramePlan:
    """Return a picture and a place for each frame."""
    frames = range(num_frames)
    return FramePlan(
        tuple(Picture((frame,)) for frame in frames),
        tuple(Whole((frame,), budget.tokens_per_image, frame) for frame in frames),
    )
