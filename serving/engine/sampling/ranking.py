"""The largest numbers of many rows, found without sorting the rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BLOCK = 64
"""Numbers of which only the largest is looked at first."""


def largest_ids(rows: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Return [R, count] ids of each row's largest numbers, largest first, lower ids first among equals of those chosen.

    The `count` largest of a row lie in the `count` blocks with the largest heads, so only those are partitioned. A
    block is every so-many-th number, for neighbours are compared many at once.

    Args:
        rows: [R, V], none of it NaN.
        count: At most V.
    """
    num_rows, width = rows.shape
    num_blocks = width // _BLOCK
    if count >= num_blocks // 2:
        return np.stack([_sorted_largest(row, np.arange(width), count) for row in rows])
    heads = rows[:, : num_blocks * _BLOCK].reshape(num_rows, _BLOCK, num_blocks).max(axis=1)
    blocks = np.argpartition(heads, num_blocks - count, axis=1)[:, num_blocks - count :]
    inside = (blocks[:, :, None] + np.arange(_BLOCK) * num_blocks).reshape(num_rows, -1)
    rest = np.broadcast_to(np.arange(num_blocks * _BLOCK, width), (num_rows, width - num_blocks * _BLOCK))
    ids = np.concatenate([inside, rest], axis=1)
    return np.stack([_sorted_largest(row[of_row], of_row, count) for row, of_row in zip(rows, ids, strict=True)])


def _sorted_largest(values: npt.NDArray[np.float32], ids: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return the ids of the `count` largest values, largest first."""
    if count < len(values):
        chosen = np.argpartition(values, len(values) - count)[len(values) - count :]
        values, ids = values[chosen], ids[chosen]
    ordered: npt.NDArray[np.int64] = ids[np.lexsort((ids, -values))]
    return ordered
