"""How a prompt is cut into runs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

GRID_TOKENS = 16
"""Prompts are cut at multiples of it. Kernels run so many rows at once, or a divisor of it, and what is left over by
others that round otherwise: MatMulNBits runs the last row of an odd number as a single one (docs/decisions/0015)."""


def chunks(num_tokens: int, most_tokens: int, seen: Int64 | None = None) -> Iterator[tuple[int, int]]:
    """Yield the stretches in which a prompt is run.

    The last one never holds a single token where it can be helped: kernels for single rows round otherwise than those
    for many, and the first token of an answer must not depend on how a prompt was cut.

    Args:
        num_tokens: Of the prompt.
        most_tokens: Of a stretch; one that holds tokens that see one another may be longer.
        seen: As of `bundle.prompt.Prompt`.
    """
    start = 0
    while start < num_tokens:
        end = next_end(start, num_tokens, most_tokens, seen)
        yield start, end
        start = end


def next_chunk(left_tokens: int, most_tokens: int) -> int:
    """Return how many of the tokens that are left to run are run next."""
    grid = _grid(most_tokens)
    most = most_tokens - most_tokens % grid
    leaves_one = left_tokens == most + 1 and most > grid
    return min(left_tokens, most - leaves_one * grid)


def next_end(start: int, num_tokens: int, most_tokens: int, seen: Int64 | None = None) -> int:
    """Return behind which token of a prompt a run ends that begins at `start`, as `chunks` cuts it.

    Where tokens see others behind them, no cut parts them: the run is shorter, or longer where even that parts some.
    """
    end = start + next_chunk(num_tokens - start, most_tokens)
    if seen is None or end == num_tokens:
        return end
    last = np.maximum.accumulate(seen[1])
    if last[end - 1] <= end:
        return end
    grid = _grid(most_tokens)
    places = np.arange(start - start % grid + grid, num_tokens - 1, grid)
    cuts = places[last[places - 1] <= places]
    if (before := cuts[cuts <= end]).size:
        return int(before[-1])
    return int(cuts[0]) if cuts.size else num_tokens


def _grid(most_tokens: int) -> int:
    """Return at multiples of what prompts are cut."""
    return GRID_TOKENS if most_tokens >= 2 * GRID_TOKENS else 1
