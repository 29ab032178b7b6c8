"""What one rendering of a template may cost, counted in steps: the same on every machine, and no clock.

A step is about a microsecond of CPython: a turn of a loop (and one more for every eight nodes of its body), a call, 64
characters made, four elements looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jinja2

MOST_STEPS = 1_000_000
"""Of one rendering. A template of 300 nodes takes 50,000 for 1,000 messages."""
MOST_CHARACTERS = 1 << 23
"""Of one text; the longest context of 128k tokens holds less."""
MOST_ELEMENTS = 1 << 18
"""Of one list."""
_CHARACTERS_A_STEP, _ELEMENTS_A_STEP = 64, 4
_CHARACTERS_OF_OTHERS = 24
"""Of a number or another value that is written out."""


class TemplateBudgetError(jinja2.TemplateRuntimeError):
    """A template does more than any prompt needs."""


class Budget:
    """Steps that are left.

    Args:
        steps: To begin with.
    """

    def __init__(self, steps: int) -> None:
        self._given = self._left = steps

    def spend(self, steps: int) -> None:
        """Take steps away.

        Raises:
            TemplateBudgetError: None are left.
        """
        self._left -= steps
        if self._left < 0:
            raise TemplateBudgetError(f"it takes more than {self._given} steps")

    def ticking(self, values: Any, steps: int) -> Iterator[Any]:
        """Yield values, each for so many steps."""
        for value in values:
            self.spend(steps)
            yield value

    def check_characters(self, num_characters: int) -> None:
        """Charge a text before it is made.

        Raises:
            TemplateBudgetError: It is too long, or no steps are left.
        """
        if num_characters > MOST_CHARACTERS:
            raise TemplateBudgetError(f"it makes a text of {num_characters} characters; at most {MOST_CHARACTERS}")
        self.spend(1 + num_characters // _CHARACTERS_A_STEP)

    def check_elements(self, num_elements: int) -> None:
        """Charge a list before it is made.

        Raises:
            TemplateBudgetError: It is too long, or no steps are left.
        """
        if num_elements > MOST_ELEMENTS:
            raise TemplateBudgetError(f"it makes a list of {num_elements} elements; at most {MOST_ELEMENTS}")
        self.spend(1 + num_elements // _ELEMENTS_A_STEP)

    def made(self, value: Any) -> Any:
        """Charge a value that was made, and return it."""
        if isinstance(value, str):
            self.check_characters(len(value))
        elif isinstance(value, (list, tuple, dict, set)):
            self.check_elements(len(value))
            self.characters_of(value)
        return value

    def characters_of(self, value: Any) -> int:
        """Return about how many characters a value takes when it is written out, charging for every element.

        A list that holds one list twice, which holds one list twice, and so on, is small until it is written.
        """
        total, left, num_seen = 0, [value], 0
        while left:
            each = left.pop()
            num_seen += 1
            if num_seen % _ELEMENTS_A_STEP == 0:
                self.spend(1)
            if isinstance(each, str):
                total += len(each)
                continue
            total += _CHARACTERS_OF_OTHERS
            if isinstance(each, Mapping):
                left.extend(each.keys())
                left.extend(each.values())
            elif isinstance(each, (list, tuple, set)):
                left.extend(each)
        return total


_CURRENT: ContextVar[Budget] = ContextVar("template_budget")


@contextmanager
def spending(steps: int) -> Iterator[Budget]:
    """Give the templates that this thread compiles and renders in the block so many steps together."""
    token = _CURRENT.set(Budget(steps))
    try:
        yield _CURRENT.get()
    finally:
        _CURRENT.reset(token)


def current_budget() -> Budget:
    """Return the budget of the block that this thread is in."""
    return _CURRENT.get()
