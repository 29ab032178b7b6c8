from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bundle.prompt import Prompt, Span
from bundle.reduced_prompt import reduced
from runtime.filled_prompt import FilledPrompt

SPANS = (Span(2, 5, 0, 0), Span(6, 9, 0, 3), Span(9, 11, 1, 0))
PROMPT = Prompt(np.arange(100, 113), SPANS, np.arange(13), 13, 2)


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_text_stays_and_kept_tokens_stand_where_they_stood() -> None:
    found = reduced(PROMPT, [rows(0, 2, 4), rows(1)])
    assert found.positions.tolist() == [0, 1, 2, 4, 5, 7, 10, 11, 12]
    assert found.token_ids.tolist() == [100, 101, 102, 104, 105, 107, 110, 111, 112]
    assert found.spans == (Span(2, 4, 0, 0), Span(5, 6, 0, 2), Span(6, 7, 1, 0))
    assert (found.next_position, found.num_images, found.num_image_tokens) == (13, 2, 4)


def test_a_prompt_that_keeps_all_is_itself() -> None:
    assert reduced(PROMPT, [np.arange(6), np.arange(2)]) is PROMPT


def test_a_tile_of_which_nothing_is_kept_has_no_span() -> None:
    assert reduced(PROMPT, [rows(5), rows(0)]).spans == (Span(3, 4, 0, 0), Span(4, 5, 1, 0))


def test_tokens_see_the_same_others_as_far_as_those_stay() -> None:
    own = np.arange(13)
    ends = np.array([1, 2, 5, 5, 5, 6, 9, 9, 9, 11, 11, 12, 13])
    found = reduced(replace(PROMPT, seen=np.stack([own, ends])), [rows(0, 2, 4), rows(1)]).seen
    assert found.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 4, 4, 5, 6, 7, 8, 9]]
    whole = reduced(replace(PROMPT, seen=np.stack([own * 0, own * 0 + 13])), [rows(0, 2, 4), rows(1)]).seen
    assert whole.tolist() == [[0] * 9, [9] * 9]


def test_positions_by_three_axes_lose_the_same_places() -> None:
    turned = Prompt(PROMPT.token_ids, SPANS, np.stack([np.arange(13), np.arange(13) // 2, np.arange(13) % 3]), 9, 2)
    found = reduced(turned, [rows(1), rows(0, 1)])
    assert found.positions.tolist() == turned.positions[:, [0, 1, 3, 5, 9, 10, 11, 12]].tolist()
    assert found.next_position == 9


@given(st.sets(st.integers(0, 5)), st.sets(st.integers(0, 1)))
def test_every_kept_row_is_fed_in_its_own_place(first: set[int], second: set[int]) -> None:
    features = [np.arange(6, dtype=np.float32)[:, None] + 10, np.arange(2, dtype=np.float32)[:, None] + 50]
    kept = [rows(*sorted(first)), rows(*sorted(second))]
    filled = FilledPrompt.of(reduced(PROMPT, kept), [each[of] for each, of in zip(features, kept, strict=True)])
    whole = FilledPrompt.of(PROMPT, features)
    place_of = {float(row[0]): placed.start + at for placed in whole.placed for at, row in enumerate(placed.rows)}
    found = {float(row[0]): placed.start + at for placed in filled.placed for at, row in enumerate(placed.rows)}
    assert len(found) == len(first) + len(second)
    for feature, token in found.items():
        assert filled.prompt.positions[token] == place_of[feature]
        assert filled.prompt.token_ids[token] == PROMPT.token_ids[place_of[feature]]
