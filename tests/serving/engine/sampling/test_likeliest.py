"""Who may go without a look at the logits, and what everybody else gets."""

from __future__ import annotations

import numpy as np
import pytest

from bundle.errors import MachineError
from runtime.step_logits import StepLogits
from serving.engine.sampling.choice import Choice
from serving.engine.sampling.likeliest import choices
from serving.engine.sampling.sampler import Sampler
from serving.engine.sampling.state import SamplingState
from serving.protocol import SamplingParams

ROWS = np.random.default_rng(1).normal(size=(3, 20)).astype(np.float32)
GREEDY = SamplingParams(temperature=0.0)


def on_device(fetched: list[int], ids: np.ndarray | None = None) -> StepLogits:
    """Return logits that count how often they are brought to the host."""

    def fetch() -> np.ndarray:
        fetched.append(1)
        return ROWS.copy()

    return StepLogits(fetch, ROWS.argmax(axis=1) if ids is None else ids)


def chosen(logits: StepLogits, *params: SamplingParams) -> list[Choice]:
    found = choices(Sampler(), logits, [SamplingState(each) for each in params])
    assert all(isinstance(each, Choice) for each in found)
    return found


def test_greedy_rows_leave_the_logits_on_the_device_and_get_what_the_graph_found() -> None:
    fetched: list[int] = []
    found = chosen(on_device(fetched), GREEDY, GREEDY, GREEDY)
    assert [choice.token_id for choice in found] == ROWS.argmax(axis=1).tolist()
    assert not fetched


@pytest.mark.parametrize(
    "other",
    [
        SamplingParams(temperature=1.0, seed=1),
        SamplingParams(temperature=0.0, top_logprobs=2),
        SamplingParams(temperature=0.0, logit_bias=((3, 100.0),)),
        SamplingParams(temperature=0.0, repetition_penalty=1.3),
    ],
)
def test_one_row_that_wants_more_brings_the_logits_once_and_changes_no_greedy_row(other: SamplingParams) -> None:
    fetched: list[int] = []
    found = chosen(on_device(fetched), GREEDY, other, GREEDY)
    assert [found[row].token_id for row in (0, 2)] == [int(ROWS[row].argmax()) for row in (0, 2)]
    assert fetched == [1]


def test_a_bias_is_heard_although_the_graph_found_another_token() -> None:
    found = chosen(on_device([]), GREEDY, SamplingParams(temperature=0.0, logit_bias=((3, 100.0),)), GREEDY)
    assert found[1].token_id == 3


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("is_found_by_graph", [False, True])
def test_a_row_with_a_logit_that_is_no_number_fails_alone(broken: float, is_found_by_graph: bool) -> None:
    rows = ROWS.copy()
    rows[1, 4] = broken
    ids = np.array([rows[0].argmax(), -1, rows[2].argmax()]) if is_found_by_graph else None
    first, failed, last = choices(Sampler(), StepLogits(rows.copy, ids), [SamplingState(GREEDY) for _ in range(3)])
    assert isinstance(failed, MachineError)
    assert str(broken) in str(failed)
    assert [first, last] == [Choice(int(ROWS[row].argmax())) for row in (0, 2)]


def test_the_least_number_of_tokens_forbids_the_end_to_a_greedy_row_for_so_long() -> None:
    rows = np.zeros((1, 20), np.float32)
    rows[0, 3], rows[0, 5] = 9, 8
    state = SamplingState(SamplingParams(temperature=0.0, min_tokens=1), end_ids=[3])
    assert choices(Sampler(), StepLogits.of(rows.copy()), [state]) == [Choice(5)]
    assert choices(Sampler(), StepLogits.of(rows.copy()), [state]) == [Choice(3)]


def test_logits_of_the_host_are_looked_at_as_ever() -> None:
    assert [choice.token_id for choice in chosen(StepLogits.of(ROWS.copy()), GREEDY, GREEDY, GREEDY)] == ROWS.argmax(
        axis=1
    ).tolist()


def test_picked_rows_keep_their_ids_and_their_logits() -> None:
    fetched: list[int] = []
    picked = on_device(fetched).picked([True, False, True])
    assert picked.greedy_ids is not None
    assert picked.greedy_ids.tolist() == [int(ROWS[0].argmax()), int(ROWS[2].argmax())]
    np.testing.assert_array_equal(picked.rows(), ROWS[[0, 2]])
    whole = on_device(fetched)
    assert whole.picked([True, True, True]) is whole
