"""Every layout of frames by the name that a request gives it."""

from __future__ import annotations

from collections.abc import Callable

from bundle.errors import ParameterError
from bundle.frames.budget import Budget
from bundle.frames.image_grid import image_grid
from bundle.frames.options import UNIFORM, FrameOptions
from bundle.frames.plan import FramePlan
from bundle.frames.progressive_pooling import progressive_pooling
from bundle.frames.thumbnail_and_sampling import thumbnail_and_sampling
from bundle.frames.uniform import uniform

LAYOUTS: dict[str, Callable[[int, Budget], FramePlan]] = {
    UNIFORM: uniform,
    "thumbnail-and-sampling": thumbnail_and_sampling,
    "image-grid": image_grid,
    "progressive-pooling": progressive_pooling,
}
_WITH_A_BUDGET = ("thumbnail-and-sampling", "progressive-pooling")
"""Those that choose how many tokens they take."""


def check_options(options: FrameOptions) -> None:
    """Refuse a layout that is not there, and a budget for one that takes none.

    Raises:
        ParameterError: The message names the field.
    """
    if options.layout not in LAYOUTS:
        raise ParameterError(
            f"video.layout is {options.layout!r}; it must be one of {', '.join(LAYOUTS)}", "video.layout"
        )
    if options.visual_tokens is not None and options.layout not in _WITH_A_BUDGET:
        raise ParameterError(
            f"video.visual_tokens is for {' and '.join(_WITH_A_BUDGET)}; {options.layout} takes what its frames take",
            "video.visual_tokens",
        )


def plan_of(num_frames: int, options: FrameOptions, tokens_per_image: int, context_tokens: int) -> FramePlan:
    """Return how frames are laid out.

    Args:
        num_frames: That are looked at, at least 1.
        options: Of the request.
        tokens_per_image: P.
        context_tokens: Of the model; a video's window is half of it, where the request says nothing.

    Raises:
        ParameterError: As `check_options`; or the layout cannot do with its tokens.
    """
    check_options(options)
    budget = Budget(tokens_per_image, options.visual_tokens, context_tokens // 2)
    return LAYOUTS[options.layout](num_frames, budget)
