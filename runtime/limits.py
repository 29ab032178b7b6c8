"""The largest runs that something is made for: engines, and profiles of execution providers."""

from __future__ import annotations

from dataclasses import dataclass

ImageSizes = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""The least, usual and largest (height, width) of an image or tile, in pixels."""


@dataclass(frozen=True)
class Limits:
    """What runs of a bundle take at most.

    Attributes:
        cache_rows: S, of every sequence: an engine has one capacity.
        max_batch: Sequences or texts in one run.
        max_prompt_tokens: Of one run over a prompt.
        max_images: Images or tiles in one run.
        image_sizes_px: Of images or tiles, for graphs that leave their size free; None: there is no such graph.
    """

    cache_rows: int
    max_batch: int
    max_prompt_tokens: int
    max_images: int
    image_sizes_px: ImageSizes | None = None
