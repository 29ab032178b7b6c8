"""Image grid: all frames in one picture, row by row, at the price of one image. P tokens.

IG-VLM ("An Image Grid Can Be Worth a Video", Kim et al. 2024). Its six frames make two rows of three here; other
numbers make the grid that is nearest to a square. The paper's words to the model about its grid are left to the caller.
"""

from __future__ import annotations

from bundle.frames.budget import Budget
from bundle.frames.plan import FramePlan, Picture, Whole


def image_grid(num_frames: int, budget: Budget) -> FramePlan:
    """Return one picture of all frames."""
    return FramePlan((Picture.grid(range(num_frames)),), (Whole((0,), budget.tokens_per_image),))
