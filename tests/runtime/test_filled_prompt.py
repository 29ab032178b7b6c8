import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import SignatureError
from bundle.prompt import Prompt, Span
from runtime.chunks import chunks
from runtime.filled_prompt import FilledPrompt, positions_from

RNG = np.random.default_rng(5)
# Two images: four rows in two places, then two rows directly behind the first image's last.
SPANS = (Span(1, 3, 0, 0), Span(5, 7, 0, 2), Span(7, 9, 1, 0))
FEATURES = [RNG.normal(size=(2, 2, 3)).astype(np.float32), RNG.normal(size=(1, 2, 3)).astype(np.float32)]
PROMPT = Prompt(np.arange(10), SPANS, np.arange(10), 10, 2)
PLACES = {1: FEATURES[0][0, 0], 2: FEATURES[0][0, 1], 5: FEATURES[0][1, 0], 6: FEATURES[0][1, 1]}
PLACES |= {7: FEATURES[1][0, 0], 8: FEATURES[1][0, 1]}


@given(st.integers(0, 9), st.integers(1, 10))
def test_every_stretch_of_a_prompt_has_the_features_of_its_own_places(start: int, length: int) -> None:
    end = min(start + length, 10)
    run = FilledPrompt.of(PROMPT, FEATURES).run(start, end, [start], [0])
    found = {start + each.start + at: row for each in run.features for at, row in enumerate(each.rows)}
    assert found.keys() == {place for place in PLACES if start <= place < end}
    for place, row in found.items():
        np.testing.assert_array_equal(row, PLACES[place])
    np.testing.assert_array_equal(run.ids, np.arange(start, end))
    np.testing.assert_array_equal(run.positions, np.arange(start, end))


@pytest.mark.parametrize("features", [FEATURES[:1], [FEATURES[1], FEATURES[0]], []])
def test_another_number_of_rows_than_places_is_refused(features: list[np.ndarray]) -> None:
    with pytest.raises(SignatureError, match="the prompt has places for"):
        FilledPrompt.of(PROMPT, features)


def test_positions_of_what_follows_have_the_form_of_the_prompts() -> None:
    np.testing.assert_array_equal(positions_from(7, 2, np.arange(3)), [7, 8])
    np.testing.assert_array_equal(positions_from(7, 2, np.zeros((3, 5), np.int64)), [[7, 8]] * 3)


@given(st.integers(1, 200), st.integers(1, 40))
def test_chunks_are_whole_in_order_and_never_leave_one_token_alone(num_tokens: int, most: int) -> None:
    cuts = list(chunks(num_tokens, most))
    assert [token for start, end in cuts for token in range(start, end)] == list(range(num_tokens))
    assert all(end - start <= most for start, end in cuts)
    assert cuts[-1][1] - cuts[-1][0] > 1 or num_tokens == 1 or most == 1
