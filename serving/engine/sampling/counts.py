"""How often each token stands in a sequence, as arrays that a penalty can be scattered from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

_FIRST_ROOM = 64


class TokenCounts:
    """The different tokens of a prompt and of the answer so far. Grows by one at a time, at no cost that grows.

    Args:
        prompt_ids: Of the prompt; image tokens among them are tokens like others.
    """

    def __init__(self, prompt_ids: Iterable[int]) -> None:
        different = np.unique(np.fromiter(prompt_ids, np.int64))
        self._num = len(different)
        self._ids = np.resize(different, max(2 * self._num, _FIRST_ROOM)) if self._num else np.zeros(_FIRST_ROOM, int)
        self._in_answer = np.zeros(len(self._ids), np.float32)
        self._places = {int(token_id): place for place, token_id in enumerate(different)}

    def add(self, token_id: int) -> None:
        """Count a token of the answer."""
        place = self._places.setdefault(token_id, self._num)
        if place == self._num:
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._in_answer = np.concatenate([self._in_answer, np.zeros_like(self._in_answer)])
            self._ids[place] = token_id
            self._num += 1
        self._in_answer[place] += 1

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """[n] the different tokens."""
        return self._ids[: self._num]

    @property
    def in_answer(self) -> npt.NDArray[np.float32]:
        """[n] how often each of `ids` is in the answer; 0 for those of the prompt alone."""
        return self._in_answer[: self._num]
