"""The largest runs that something is made for: engines, and profiles of execution providers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What runs of a bundle take at most.

    Attributes:
        cache_rows: S, of every sequence: an engine has one capacity.
        max_batch: Sequences or texts in one run.
        max_prompt_tokens: Of one run over a prompt.
        max_images: Images or tiles in one run.
    """

    cache_rows: int
    max_batch: int
    max_prompt_tokens: int
    max_images: int
