from __future__ import annotations

import pytest
from PIL import ImageFont

from pages.drawing import TEXT_PX, elided, text_width_px


def test_a_text_of_at_most_so_many_letters_is_left_and_a_longer_one_keeps_both_ends() -> None:
    assert elided("abcdefghij", 10) == "abcdefghij"
    assert elided("abcdefghijk", 10) == "abc...ijk"
    assert all(len(elided("x" * length, 30)) <= 30 for length in range(80))


@pytest.mark.parametrize(
    "text", ["int4-gptq", "model.layers.3.mlp.up_proj", "1,000,000", "right answers, %", "(n 200)"]
)
def test_a_width_is_on_the_wide_side_and_not_by_half(text: str) -> None:
    """Against DejaVu Sans, the widest of the fonts that systems commonly come with."""
    try:
        font = ImageFont.truetype("DejaVuSans.ttf", 10 * TEXT_PX)
    except OSError:
        pytest.skip("DejaVu Sans is not installed")
    assert 0.95 * font.getlength(text) / 10 <= text_width_px(text) <= 1.5 * font.getlength(text) / 10


def test_wide_letters_count_twice() -> None:
    assert text_width_px("中文") == 2 * text_width_px("ab")
