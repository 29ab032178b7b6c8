"""The structure that one answer has to have: which tokens may follow, computed beside the model's step."""

from __future__ import annotations

import re
from collections.abc import Collection
from concurrent.futures import Executor, Future, TimeoutError, wait
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bundle.errors import ParameterError

MASK_TIMEOUT_S = 2.0
"""For the tokens that may follow: they take microseconds, and a tenth of a second where a grammar is at its limits."""


_QUOTED = re.compile(r"\s*(\d+ \||\^)")
"""A line of the grammar under an error, or the mark below it."""


class Matcher(Protocol):
    """What `llguidance.LLMatcher` does of use here. None of it raises: a matcher gets an error and keeps it."""

    def compute_bitmask(self) -> bytes:
        """Return one bit per token, the lowest first, for those that may follow."""
        ...

    def consume_token(self, sampled_token: int) -> bool:
        """Go on with a token; False where it may not follow."""
        ...

    def is_accepting(self) -> bool:
        """Return whether the answer may end here."""
        ...

    def is_error(self) -> bool:
        """Return whether it has given up."""
        ...

    def get_error(self) -> str:
        """Return why it has given up."""
        ...

    def deep_copy(self) -> Matcher:
        """Return another one in the same state."""
        ...


class Constraint:
    """One answer's place in its grammar.

    The engine thread asks what may follow and tells what did; the work between runs on other threads, while the model
    makes its next logits.

    Args:
        matcher: At the answer's beginning; owned from here on.
        end_ids: Tokens that end the answer: allowed where the grammar accepts, and nowhere else.
        param: The field of the request, for errors.
        threads: Do the work.
    """

    def __init__(self, matcher: Matcher, end_ids: Collection[int], param: str, threads: Executor) -> None:
        self._matcher = matcher
        self._end_ids = frozenset(end_ids)
        self._param = param
        self._threads = threads
        self._allowed: Future[npt.NDArray[np.uint8]] = threads.submit(self._bits, None)

    def allowed(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """Return [vocab_size] which tokens may follow.

        Raises:
            ParameterError: The grammar turned out too costly to follow.
        """
        try:
            bits = self._allowed.result(MASK_TIMEOUT_S)
        except TimeoutError as error:
            raise ParameterError(
                f"what may follow was not known within {MASK_TIMEOUT_S:g} s; ask for a simpler structure", self._param
            ) from error
        return np.unpackbits(bits, count=vocab_size, bitorder="little").view(np.bool_)

    def take(self, token_id: int) -> None:
        """Go on with a token that was allowed."""
        wait(
            [self._allowed]
        )  # two threads must never have the matcher at once; whoever asked what may follow has waited
        if token_id not in self._end_ids:
            self._allowed = self._threads.submit(self._bits, token_id)

    def _bits(self, token_id: int | None) -> npt.NDArray[np.uint8]:
        """Return a bit per token for those that may follow, once the matcher has gone on."""
        if token_id is not None:
            self._matcher.consume_token(token_id)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8).copy()
        if self._matcher.is_error():
            raise ParameterError(f"the structure cannot be followed further: {told(self._matcher)}", self._param)
        for end_id in self._end_ids:
            bit = np.uint8(1 << (end_id & 7))
            bits[end_id >> 3] = bits[end_id >> 3] | bit if self._matcher.is_accepting() else bits[end_id >> 3] & ~bit
        return bits


def told(matcher: Matcher) -> str:
    """Return why a matcher has given up, in one line of bounded length, without the grammar that it writes below."""
    lines = matcher.get_error().replace("<non-verbose/>", "").splitlines()
    return " ".join(" ".join(line for line in lines if not _QUOTED.match(line)).split())[:300]
