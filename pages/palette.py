"""The colours of every page and chart, by light and by dark.

Series are Okabe and Ito's palette for all kinds of colour vision, darkened or lightened until they stand out from the
ground; no chart tells by colour alone.
"""

from __future__ import annotations

from typing import Literal

Colour = Literal[
    "ink",
    "soft",
    "line",
    "ground",
    "panel",
    "good",
    "bad",
    "warn",
    "series-0",
    "series-1",
    "series-2",
    "series-3",
    "series-4",
    "series-5",
    "series-6",
]

LIGHT: dict[Colour, str] = {
    "ink": "#1b1f24",
    "soft": "#5b6470",
    "line": "#d8dce3",
    "ground": "#ffffff",
    "panel": "#f6f7f9",
    "good": "#17753a",
    "bad": "#b3261e",
    "warn": "#8a5a00",
    "series-0": "#0072b2",
    "series-1": "#d55e00",
    "series-2": "#009e73",
    "series-3": "#b0568c",
    "series-4": "#a87900",
    "series-5": "#3a8fbf",
    "series-6": "#6b6b6b",
}
"""Also of a chart as a PNG file."""

DARK: dict[Colour, str] = {
    "ink": "#e6e8eb",
    "soft": "#a3acb8",
    "line": "#383f48",
    "ground": "#15181c",
    "panel": "#1d2127",
    "good": "#6bd08f",
    "bad": "#ff8a80",
    "warn": "#f0b840",
    "series-0": "#56a7e0",
    "series-1": "#ff8a3d",
    "series-2": "#2cc79a",
    "series-3": "#e29cc4",
    "series-4": "#f0b840",
    "series-5": "#9ad4ff",
    "series-6": "#b5b5b5",
}

SERIES: tuple[Colour, ...] = (
    "series-0",
    "series-1",
    "series-2",
    "series-3",
    "series-4",
    "series-5",
    "series-6",
)
"""In the order in which they are given to what is compared."""


def variables() -> str:
    """Return the style sheet's variables: light, and dark where the reader's system asks for it."""
    light, dark = (" ".join(f"--{name}: {value};" for name, value in theme.items()) for theme in (LIGHT, DARK))
    return (
        f":root {{ color-scheme: light dark; {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    )
