"""How counts and figures are written in reports."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return e.g. "1 image" or "8 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def number(value: float) -> str:
    """Return a figure with three significant digits, or all digits before the point where it has more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def out_of_range(name: str, value: float, low: float, high: float) -> str:
    """Return the message about a value that is below `low` or above `high`."""
    return f"{name} {value} is out of range: it may be {low:,.12g} to {high:,.12g}"
