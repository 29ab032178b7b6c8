"""Two texts as one row of ids: what a tokenizer puts around and between them, and which of them loses its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bundle.errors import BundleFormatError, ContextLengthError
from bundle.text import TextBatch, Tokenizer


class TextPairs:
    """Makes rows of two texts each; safe to share between threads.

    Args:
        tokenizer: Says what stands around and between them.
        max_tokens: Of a row.

    Attributes:
        fewest_tokens: Of a row in which a token of each text is left.

    Raises:
        BundleFormatError: The tokenizer does not keep two texts apart, one behind the other.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        self._frame = _Frame.of(tokenizer)
        self.fewest_tokens = self._frame.num_tokens + 2

    def row(self, first: str, second: str, most_tokens: int | None = None) -> TextBatch:
        """Return two texts as a batch of one row, as their tokenizer joins them.

        Args:
            first: Read first, a query.
            second: A document.
            most_tokens: Of the row; the longer text loses its end first, then both (`longest_first` of transformers).
                None: nothing is cut.

        Raises:
            ContextLengthError: They are too long together and not to be cut.
        """
        ids = [self._ids(text, most_tokens) for text in (first, second)]
        num_around = self._frame.num_tokens
        total = sum(map(len, ids)) + num_around
        if most_tokens is None and total > self._max_tokens:
            raise ContextLengthError(
                f"the two texts take {total} tokens together; at most {self._max_tokens} are read. Shorten them."
            )
        room = self._max_tokens if most_tokens is None else most_tokens
        num_first, num_second = _shares(len(ids[0]), len(ids[1]), room - num_around)
        row = np.array(self._frame.around(ids[0][:num_first], ids[1][:num_second]), np.int64)
        return TextBatch(row[None, :, 0], np.ones((1, len(row)), np.int64), len(row), row[None, :, 1])

    def _ids(self, text: str, most_tokens: int | None) -> list[int]:
        if most_tokens is None:
            self._tokenizer.check_characters(len(text), self._max_tokens)
            return self._tokenizer.encode(text)
        return self._tokenizer.encode(self._tokenizer.shortened(text, most_tokens))


_Typed = list[tuple[int, int]]
"""Ids, each with its type."""


@dataclass(frozen=True)
class _Frame:
    """What stands around two texts, and of which type their own tokens are."""

    before: _Typed
    between: _Typed
    after: _Typed
    types: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def around(self, first: Sequence[int], second: Sequence[int]) -> _Typed:
        """Return both texts in the frame."""
        texts = ([(token, kind) for token in ids] for ids, kind in zip((first, second), self.types, strict=True))
        return [*self.before, *next(texts), *self.between, *next(texts), *self.after]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _Frame:
        """Return a tokenizer's."""
        first, second = tokenizer.encode("a"), tokenizer.encode("b")
        ids, types = tokenizer.encode_two("a", "b")
        found = list(zip(ids, types, strict=True))
        for start in range(len(ids) - len(first) - len(second) + 1):
            for middle in range(start + len(first), len(ids) - len(second) + 1):
                end = middle + len(second)
                if ids[start : start + len(first)] == first and ids[middle:end] == second:
                    between = found[start + len(first) : middle]
                    return cls(found[:start], between, found[end:], (types[start], types[middle]))
        raise BundleFormatError(
            f"tokenizer.json turns the texts 'a' and 'b' into {ids}, in which they do not follow each other; the "
            "model's tokenizer has no rule for two texts"
        )


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of two texts are kept in a room: of the longer one fewer, until both are as long."""
    if first + second <= room:
        return first, second
    half = room // 2
    if first <= half:
        return first, room - first
    if second <= half:
        return room - second, second
    return (room - half, half) if first > second else (half, room - half)
