import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import MachineError
from serving.engine.sampling.candidates import candidates
from serving.engine.sampling.choice import Choice
from serving.engine.sampling.sampler import Sampler
from serving.engine.sampling.state import SamplingState
from serving.protocol import SamplingParams

# Eighths, all different: closer logits would tie once exponentiated, and ties may be ranked either way.
ROWS = st.lists(st.integers(-160, 160), min_size=2, max_size=40, unique=True).map(
    lambda values: np.array(values, np.float32) / 8
)


def drawn(logits: np.ndarray, state: SamplingState) -> int:
    [choice] = Sampler().choose(logits[None].copy(), [state])
    if not isinstance(choice, Choice):
        raise choice
    return choice.token_id


def chances(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    weights = np.exp((logits - logits.max()) / np.float32(params.temperature))
    ids, kept = candidates(weights, SamplingState(params))
    found = np.zeros(len(logits))
    found[slice(None) if ids is None else ids] = kept / kept.sum()
    return found


def probabilities_by_definition(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """What each token's chance is, as temperature, top_k and top_p are defined."""
    order = np.argsort(-logits, kind="stable")[: params.top_k or None]
    scaled = logits[order].astype(np.float64) / params.temperature
    weights = np.exp(scaled - scaled.max())
    mass_before = (np.cumsum(weights) - weights) / weights.sum()
    weights[mass_before >= params.top_p] = 0
    chances = np.zeros(len(logits))
    chances[order] = weights / weights.sum()
    return chances


@given(ROWS)
def test_temperature_zero_takes_the_largest_logit(logits) -> None:
    assert drawn(logits, SamplingState(SamplingParams())) == int(np.argmax(logits))


@given(ROWS, st.sampled_from([1e-3, 1e-300, 5e-324]), st.sampled_from([{}, {"top_k": 2}, {"top_p": 0.9}]))
def test_the_smallest_temperatures_take_the_largest_logit_too(logits, temperature, cut) -> None:
    assert drawn(logits, SamplingState(SamplingParams(temperature=temperature, **cut))) == int(np.argmax(logits))


@given(ROWS, st.floats(0.1, 3), st.integers(0, 50), st.floats(0.01, 1))
def test_tokens_are_drawn_with_the_chances_that_temperature_top_k_and_top_p_define(
    logits, temperature, top_k, top_p
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    found = chances(logits, params)
    expected = probabilities_by_definition(logits, params)
    # A mass within rounding of top_p may fall on either side, so one border token may come or go; 1e-6 is far above
    # float32 rounding and far below any chance that matters.
    border = np.flatnonzero((found > 0) != (expected > 0))
    assert np.count_nonzero(np.maximum(found, expected)[border] > 1e-6) <= 1
    if not len(border):
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_nucleus_of_equals_is_a_share_of_them() -> None:
    found = chances(np.zeros(5000, np.float32), SamplingParams(temperature=1.0, top_p=0.5))
    assert abs(np.count_nonzero(found) - 2500) <= 1


def test_a_nucleus_reaches_tokens_that_are_far_below_the_likeliest_where_they_hold_its_mass() -> None:
    logits = np.full(5001, -8, np.float32)
    logits[7] = 0
    each = np.exp(-8)
    found = chances(logits, SamplingParams(temperature=1.0, top_p=0.9))
    assert found[7] > 0
    wanted = (0.9 * (1 + 5000 * each) - 1) / each
    assert abs(np.count_nonzero(found) - 1 - wanted) <= 2  # a float32 sum of 5,000 may be off by one of them


def test_draws_follow_the_softmax() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    state = SamplingState(SamplingParams(temperature=1.0, seed=1))
    counts = np.bincount([drawn(logits, state) for _ in range(4000)], minlength=4)
    # Pearson's statistic with 3 degrees of freedom passes 16.3 once in a thousand seeds; the seed is fixed.
    expected = 4000 * np.array([0.5, 0.3, 0.15, 0.05])
    assert ((counts - expected) ** 2 / expected).sum() < 16.3


@given(st.integers(0, 2**63 - 1))
@settings(max_examples=20)
def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(seed: int) -> None:
    logits = np.random.default_rng(0).normal(size=(40, 100)).astype(np.float32)

    def draw(seed: int | None) -> list[int]:
        state = SamplingState(SamplingParams(temperature=1.0, seed=seed))
        return [drawn(row, state) for row in logits]

    assert draw(seed) == draw(seed)
    assert draw(seed) != draw(seed + 1)
    assert draw(None) != draw(None)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_an_error_and_not_a_token(bad: float) -> None:
    logits = np.zeros(8, np.float32)
    logits[3] = bad
    with pytest.raises(MachineError, match="largest logit"):
        drawn(logits, SamplingState(SamplingParams(temperature=1.0)))


def test_a_row_that_fails_leaves_its_mates_their_tokens() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    params = SamplingParams(temperature=1.0, seed=7)
    alone = [drawn(row, SamplingState(params)) for row in logits[[0, 2]]]
    logits[1] = np.nan
    first, broken, last = Sampler().choose(logits, [SamplingState(params) for _ in range(3)])
    assert isinstance(broken, MachineError)
    assert [first, last] == [Choice(token_id) for token_id in alone]
