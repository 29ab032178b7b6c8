"""What one step of sampling yields for one sequence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Logprobs:
    """How likely the model itself held a token, and the likeliest ones.

    Attributes:
        of_chosen: Natural logarithm of the chosen token's chance.
        top: (token id, logarithm) of as many likeliest tokens as were asked for, the likeliest first.
    """

    of_chosen: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Choice:
    """The token that a sequence goes on with, and how likely it was, where that was asked for."""

    token_id: int
    logprobs: Logprobs | None = None
