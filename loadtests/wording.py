"""How counts and figures are written in reports."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return e.g. "1 image" or "8 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def number(value: float) -> str:
    """Return a figure with three significant digits, or all digits before the point where it has more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
