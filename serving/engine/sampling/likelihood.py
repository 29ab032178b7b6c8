"""How likely the model itself holds tokens: the log-softmax of its logits, before anything is done to them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from serving.engine.sampling.choice import Logprobs
from serving.engine.sampling.ranking import largest_ids


class Likelihood:
    """What some rows of a batch shall tell; computed at once, for the logits are overwritten later.

    Args:
        logits: [B, V].
        wanted: By row, how many of the likeliest tokens are told.
    """

    def __init__(self, logits: npt.NDArray[np.float32], wanted: Mapping[int, int]) -> None:
        self._wanted = wanted
        self._places = {row: place for place, row in enumerate(wanted)}
        if not wanted:
            return
        self._logits = logits[list(wanted)]
        self._likeliest = largest_ids(self._logits, max(max(wanted.values()), 1))
        largest = np.take_along_axis(self._logits, self._likeliest[:, :1], axis=1)
        chances = np.subtract(self._logits, largest)
        np.exp(chances, out=chances)
        self._offsets = (largest[:, 0] + np.log(chances.sum(axis=1))).tolist()

    def of(self, row: int, token_id: int) -> Logprobs | None:
        """Return what is told of a row whose token was chosen; None where nothing is wanted."""
        if row not in self._wanted:
            return None
        place = self._places[row]
        logits, offset = self._logits[place], self._offsets[place]
        ids = self._likeliest[place, : self._wanted[row]].tolist()
        return Logprobs(float(logits[token_id]) - offset, tuple((id_, float(logits[id_]) - offset) for id_ in ids))
