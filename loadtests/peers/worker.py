"""The child's side of a comparison: one system, open in its own environment, answers questions on standard input.

It imports nothing but the standard library, for the environment is a peer's. A line of JSON asks; a line of JSON
answers. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from loadtests.peers.measures import Measure

Work = tuple[Callable[[], object], int]
"""What is timed, and how many steps it makes, of which the mean counts; a run that returns a number counts that many
items in place of the measure's own."""

Prepare = Callable[[Measure], Work]
"""Makes ready what is timed."""


def serve(open_system: Callable[[], Mapping[str, Prepare]], packages: tuple[str, ...]) -> None:
    """Open a system, say so, and answer until the questions end.

    Args:
        open_system: Returns what prepares the measures of each kind.
        packages: Whose versions are told.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print on standard output

    def say(**told: object) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    try:
        prepared = open_system()
    except Exception as error:  # whatever a peer raises is the finding
        traceback.print_exc()
        say(error=_line(error))
        return
    say(kinds=sorted(prepared), versions={name: metadata.version(name) for name in packages})
    for line in sys.stdin:
        try:
            say(ms=run(prepared, Measure(**json.loads(line))))
        except Exception as error:  # as above
            traceback.print_exc()
            say(error=_line(error))


def run(prepared: Mapping[str, Prepare], measure: Measure) -> float:
    """Return the milliseconds of one run, of one step where it makes several."""
    work, steps = prepared[measure.kind](measure)
    started_s = time.perf_counter()
    items: Any = work()
    taken_ms = (time.perf_counter() - started_s) * 1e3 / steps
    return taken_ms * measure.items / items if isinstance(items, int) else taken_ms


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
