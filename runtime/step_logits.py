"""The logits that a step's tokens are chosen from, which may still lie where they were computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


class StepLogits:
    """Logits [B, V] of a step, one row per sequence; valid until the next step.

    Args:
        fetch: Brings all of them to the host.
        greedy_ids: [B] the ids of the largest ones, where the graph itself found them; -1 where one is no number.
    """

    def __init__(self, fetch: Callable[[], Logits], greedy_ids: npt.NDArray[np.int64] | None = None) -> None:
        self._fetch = fetch
        self._rows: Logits | None = None
        self.greedy_ids = greedy_ids

    @classmethod
    def of(cls, rows: Logits) -> StepLogits:
        """Return logits that are on the host."""
        return cls(lambda: rows)

    def rows(self) -> Logits:
        """Return [B, V] on the host; brought there when first asked for."""
        if self._rows is None:
            self._rows = self._fetch()
        return self._rows

    def likeliest_ids(self) -> npt.NDArray[np.int64]:
        """Return [B] the ids of the largest logits; -1 where the largest is no number, as beside any NaN."""
        if self.greedy_ids is not None:
            return self.greedy_ids
        rows = self.rows()
        ids = rows.argmax(axis=1)  # numpy takes a NaN to be the largest
        return np.where(np.isfinite(rows[np.arange(len(ids)), ids]), ids, -1)

    def picked(self, wanted: Sequence[bool]) -> StepLogits:
        """Return the rows marked by [B]."""
        if all(wanted):
            return self
        ids = None if self.greedy_ids is None else self.greedy_ids[list(wanted)]
        return StepLogits(lambda: self.rows()[list(wanted)], ids)
