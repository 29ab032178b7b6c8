import math

import pytest

from serving.engine.pace import FEWEST_TOKENS, Pace


def paced(token_s: float, step_s: float, most_gap_s: float = 0.25) -> Pace:
    pace = Pace(512, most_gap_s)
    for _ in range(40):
        pace.note_chunk(100, 100 * token_s)
        pace.note_step(step_s)
    return pace


def test_a_chunk_is_whole_while_nobody_waits_for_a_token_or_nothing_was_measured() -> None:
    assert Pace(512, 0.001).chunk_tokens(beside_answers=True) == 512
    assert paced(0.001, 0.05).chunk_tokens(beside_answers=False) == 512


@pytest.mark.parametrize(("token_s", "step_s", "tokens"), [(0.001, 0.05, 200), (0.0001, 0.05, 512), (0.002, 0.05, 100)])
def test_a_chunk_and_a_step_take_the_gap_together(token_s: float, step_s: float, tokens: int) -> None:
    assert paced(token_s, step_s).chunk_tokens(beside_answers=True) == pytest.approx(tokens, abs=1)


def test_a_gap_that_cannot_be_kept_leaves_chunks_that_are_worth_a_run() -> None:
    assert paced(0.01, 0.05).chunk_tokens(beside_answers=True) == FEWEST_TOKENS
    assert paced(0.001, 0.5).chunk_tokens(beside_answers=True) == FEWEST_TOKENS
    assert Pace(8, 0.1).chunk_tokens(beside_answers=True) == 8


def test_a_gap_of_any_length_never_cuts_a_chunk() -> None:
    assert paced(0.01, 0.05, math.inf).chunk_tokens(beside_answers=True) == 512


def test_what_was_measured_last_counts_most() -> None:
    pace = paced(0.001, 0.05)
    for _ in range(10):
        pace.note_chunk(100, 100 * 0.002)
    assert 100 <= pace.chunk_tokens(beside_answers=True) <= 105


def test_prompts_have_room_before_a_step_until_the_gap_is_full() -> None:
    pace = paced(0.001, 0.05)
    assert pace.has_room_for(200)
    assert not pace.has_room_for(201)
    pace.note_chunk(120, 0.12)
    assert pace.has_room_for(79)
    assert not pace.has_room_for(81)
    pace.note_step(0.05)
    assert pace.has_room_for(199)
    assert not Pace(512, math.inf).has_room_for(1)
