from __future__ import annotations

from typing import get_args

import pytest
from PIL import ImageColor

from pages.palette import DARK, LIGHT, SERIES, Colour, variables

THEMES = {"light": LIGHT, "dark": DARK}


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    linear = [
        value / 255 / 12.92 if value / 255 <= 0.04045 else ((value / 255 + 0.055) / 1.055) ** 2.4
        for value in ImageColor.getrgb(colour)[:3]
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_texts_and_series_stand_out_as_wcag_asks(theme: dict[Colour, str]) -> None:
    for ground in ("ground", "panel"):
        for text in ("ink", "soft", "good", "bad", "warn"):
            assert contrast(theme[text], theme[ground]) >= 4.5, text
    assert all(contrast(theme[series], theme["ground"]) >= 3 for series in SERIES)


def test_both_themes_have_every_colour_and_no_two_series_are_alike() -> None:
    assert LIGHT.keys() == DARK.keys() == set(get_args(Colour))
    assert all(len({theme[series] for series in SERIES}) == len(SERIES) for theme in THEMES.values())


def test_the_style_sheet_names_every_colour_twice() -> None:
    assert all(variables().count(f"--{name}:") == 2 for name in get_args(Colour))
