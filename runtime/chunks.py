"""How a prompt is cut into runs."""

from __future__ import annotations

from collections.abc import Iterator

GRID_TOKENS = 16
"""Prompts are cut at multiples of it. Kernels run so many rows at once, or a divisor of it, and what is left over by
others that round otherwise: MatMulNBits runs the last row of an odd number as a single one (docs/decisions/0015)."""


def chunks(num_tokens: int, most_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield the stretches in which a prompt is run.

    The last one never holds a single token where it can be helped: kernels for single rows round otherwise than those
    for many, and the first token of an answer must not depend on how a prompt was cut.
    """
    start = 0
    while start < num_tokens:
        end = start + next_chunk(num_tokens - start, most_tokens)
        yield start, end
        start = end


def next_chunk(left_tokens: int, most_tokens: int) -> int:
    """Return how many of the tokens that are left to run are run next."""
    grid = GRID_TOKENS if most_tokens >= 2 * GRID_TOKENS else 1
    most = most_tokens - most_tokens % grid
    leaves_one = left_tokens == most + 1 and most > grid
    return min(left_tokens, most - leaves_one * grid)
