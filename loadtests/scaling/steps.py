"""Steps of load, as they are written on a command line: `1x20,8x90,1x30` is users x seconds, one step after another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_MOST_USERS = 1000
_LONGEST_S = 3600


@dataclass(frozen=True)
class Step:
    """So many users for so long.

    Attributes:
        users: Requests in flight.
        duration_s: Whole seconds.
    """

    users: int
    duration_s: int


def parse_steps(text: str) -> tuple[Step, ...]:
    """Return the steps of a text.

    Raises:
        ValueError: A step is not users x seconds, or beyond what a load test does.
    """
    steps = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)x(\d+)\s*", part)
        if found is None:
            raise ValueError(f"step {part!r} of {text!r} is not USERSxSECONDS, such as 8x60")
        step = Step(int(found[1]), int(found[2]))
        if not (1 <= step.users <= _MOST_USERS and 1 <= step.duration_s <= _LONGEST_S):
            raise ValueError(f"step {part!r}: it may have 1 to {_MOST_USERS} users and take 1 to {_LONGEST_S} s")
        steps.append(step)
    return tuple(steps)


def users_at(steps: Sequence[Step], time_s: float) -> int | None:
    """Return how many users there are at a time of the run, None at its end."""
    for step in steps:
        if time_s < step.duration_s:
            return step.users
        time_s -= step.duration_s
    return None
