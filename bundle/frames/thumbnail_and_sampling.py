"""Thumbnail and sampling: a grid of a few frames for detail, and rows of all frames for time. P + S tokens.

TS-LLaVA ("Constructing Visual Tokens through Thumbnail-and-Sampling", Qu et al. 2024): the features of a thumbnail of
equidistant frames stand before features that are evenly sampled from all frames' rows. Here the thumbnail shows six of
them, and all together take six images' worth of tokens where a request does not say.
"""

from __future__ import annotations

import numpy as np

from bundle.errors import ParameterError
from bundle.frames.budget import Budget
from bundle.frames.plan import FramePlan, Picture, Sampled, Whole

_THUMBNAIL_FRAMES = 6
_IMAGES_WORTH = 6


def thumbnail_and_sampling(num_frames: int, budget: Budget) -> FramePlan:
    """Return the thumbnail and every frame as pictures, and a place for the one and for rows of the others.

    Raises:
        ParameterError: The budget leaves no token beside the thumbnail.
    """
    per_image = budget.tokens_per_image
    wanted = min(_IMAGES_WORTH * per_image, budget.window_tokens)
    num_tokens = min(wanted if budget.visual_tokens is None else budget.visual_tokens, (num_frames + 1) * per_image)
    if num_tokens <= per_image:
        raise ParameterError(
            f"thumbnail-and-sampling has {num_tokens} tokens for the video, and its thumbnail alone takes {per_image}; "
            "ask for more by visual_tokens",
            "video.visual_tokens",
        )
    few = np.unique(np.linspace(0, num_frames - 1, min(_THUMBNAIL_FRAMES, num_frames)).astype(int))
    thumbnail = Picture.grid(few.tolist())
    frames = tuple(Picture((frame,)) for frame in range(num_frames))
    sampled = Sampled(tuple(range(1, num_frames + 1)), num_tokens - per_image)
    return FramePlan((thumbnail, *frames), (Whole((0,), per_image), sampled))
