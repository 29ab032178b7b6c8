"""How a prompt is cut into runs."""

from __future__ import annotations

from collections.abc import Iterator


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
    leaves_one = left_tokens == most_tokens + 1 and most_tokens > 1
    return min(left_tokens, most_tokens - leaves_one)
