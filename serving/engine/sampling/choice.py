"""What one step of sampling yields for one sequence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """The token that a sequence goes on with."""

    token_id: int
