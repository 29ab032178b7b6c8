"""How large everything is that the GPU benchmark runs: as asked for, or tiny, for a dry run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """What is run.

    Attributes:
        preset: Of the random checkpoint, as `tests/checkpoints.py` knows it.
        vision_tiles: Tiles of a run of the vision encoder.
        prompt_tokens: Of the prefill, and cached before the first decode step.
        batch_sizes: Of decode steps.
        answers: Asked for at once.
        answer_tokens: Of each.
        image_px: Width and height of the images behind first tokens.
        context_tokens: Rows of a slot.
        repeats: Runs that count, at most.
        budget_s: Per measurement.
    """

    preset: str = "smolvlm-256m"
    vision_tiles: tuple[int, ...] = (1, 8)
    prompt_tokens: int = 512
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    answers: int = 32
    answer_tokens: int = 64
    image_px: int = 512
    context_tokens: int = 1024
    repeats: int = 40
    budget_s: float = 4.0


FULL = Sizes()
TINY = Sizes(
    preset="tiny",
    vision_tiles=(1, 2),
    prompt_tokens=24,
    batch_sizes=(1, 3),
    answers=3,
    answer_tokens=8,
    image_px=32,
    context_tokens=128,
    repeats=4,
    budget_s=0.5,
)
