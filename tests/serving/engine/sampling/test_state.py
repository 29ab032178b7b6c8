"""What is done to scores before a token is drawn, held against transformers' processors and the definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.sampling.candidates import candidates
from serving.engine.sampling.choice import Choice
from serving.engine.sampling.sampler import Sampler
from serving.engine.sampling.state import SamplingState
from serving.protocol import SamplingParams

VOCAB_SIZE = 200
IDS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=12)


def scores_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=4, size=VOCAB_SIZE).astype(np.float32)


def changed(state: SamplingState, logits: np.ndarray) -> np.ndarray:
    scores = logits.copy()
    state.change(scores)
    return scores


def chances(state: SamplingState, logits: np.ndarray) -> np.ndarray:
    """The chance of each token as the sampler draws it."""
    scores = changed(state, logits).astype(np.float64)
    weights = np.exp((scores - scores.max()) / state.temperature).astype(np.float32)
    ids, kept = candidates(weights, state)
    found = np.zeros(len(logits))
    found[slice(None) if ids is None else ids] = kept / kept.sum()
    return found


@given(st.integers(0, 10**6), IDS, IDS, st.floats(0.2, 3))
def test_repetition_penalty_is_transformers_of_prompt_and_answer(seed, prompt, answer, penalty) -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    state = SamplingState(SamplingParams(repetition_penalty=penalty), prompt)
    for token_id in answer:
        state.take(token_id)
    logits = scores_of(seed)
    ids = torch.tensor([[*prompt, *answer]], dtype=torch.int64)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, torch.from_numpy(logits.copy())[None])[0].numpy()
    np.testing.assert_allclose(changed(state, logits), expected, rtol=1e-6)


@given(st.integers(0, 10**6), IDS, IDS, st.floats(-2, 2), st.floats(-2, 2))
def test_frequency_and_presence_count_the_answer_alone(seed, prompt, answer, frequency, presence) -> None:
    params = SamplingParams(frequency_penalty=frequency, presence_penalty=presence)
    state = SamplingState(params, prompt)
    for token_id in answer:
        state.take(token_id)
    logits = scores_of(seed)
    expected = [
        score - frequency * answer.count(token_id) - presence * (token_id in answer)
        for token_id, score in enumerate(logits.tolist())
    ]
    np.testing.assert_allclose(changed(state, logits), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_processors_run_in_the_order_of_transformers(seed: int) -> None:
    import torch
    from transformers import (
        MinLengthLogitsProcessor,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        SequenceBiasLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    rng = np.random.default_rng(seed)
    prompt, answer = rng.integers(0, VOCAB_SIZE, 9).tolist(), rng.integers(0, VOCAB_SIZE, 5).tolist()
    bias = {int(token_id): float(rng.uniform(-8, 8)) for token_id in rng.choice(VOCAB_SIZE, 4, replace=False)}
    end_ids = rng.choice(VOCAB_SIZE, 2, replace=False).tolist()
    params = SamplingParams(
        temperature=0.7,
        top_k=40,
        top_p=0.8,
        min_p=0.05,
        repetition_penalty=1.3,
        logit_bias=tuple(bias.items()),
        min_tokens=6,
    )
    state = SamplingState(params, prompt, end_ids)
    for token_id in answer:
        state.take(token_id)
    logits = scores_of(seed)
    ids = torch.tensor([[*prompt, *answer]], dtype=torch.int64)
    expected = torch.from_numpy(logits.copy())[None]
    for processor in (
        SequenceBiasLogitsProcessor([[[token_id], value] for token_id, value in bias.items()]),
        RepetitionPenaltyLogitsProcessor(1.3),
        MinLengthLogitsProcessor(len(prompt) + 6, end_ids),
        TemperatureLogitsWarper(0.7),
        TopKLogitsWarper(40),
        TopPLogitsWarper(0.8),
        MinPLogitsWarper(0.05),
    ):
        expected = processor(ids, expected)
    np.testing.assert_allclose(chances(state, logits), torch.softmax(expected, -1)[0].numpy(), rtol=1e-4, atol=1e-7)


def test_an_end_token_is_not_chosen_before_min_tokens_and_may_be_after() -> None:
    state = SamplingState(SamplingParams(min_tokens=2), end_ids=(3,))
    logits = np.zeros(8, np.float32)
    logits[3] = 9
    found = [Sampler().choose(logits[None].copy(), [state])[0] for _ in range(3)]
    assert [choice.token_id for choice in found] == [0, 0, 3]


def test_a_bias_of_100_decides_and_one_of_minus_100_forbids() -> None:
    logits = scores_of(0)
    last, first = int(logits.argmin()), int(logits.argmax())
    for bias, is_chosen in (((last, 100.0), True), ((first, -100.0), False)):
        [choice] = Sampler().choose(logits[None].copy(), [SamplingState(SamplingParams(logit_bias=(bias,)))])
        assert isinstance(choice, Choice)
        assert (choice.token_id == bias[0]) is is_chosen


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([None, 0.1, 0.9, 0.999]),
    top_k=st.sampled_from([0, 1, 50]),
    min_p=st.sampled_from([None, 0.2, 1e-5]),
    seed=st.integers(0, 5),
    repetition_penalty=st.sampled_from([None, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 1.0]),
    logit_bias=st.sampled_from([(), ((7, 5.0),)]),
    top_logprobs=st.sampled_from([None, 0, 20]),
)


@given(st.lists(PARAMS, min_size=1, max_size=6), st.integers(0, 100))
def test_a_row_gets_the_same_tokens_whoever_shares_its_batch(all_params, seed) -> None:
    logits = np.random.default_rng(seed).normal(scale=3, size=(3, len(all_params), 500)).astype(np.float32)
    together = [SamplingState(params, (1, 2)) for params in all_params]
    alone = [SamplingState(params, (1, 2)) for params in all_params]
    for step in logits:
        found = Sampler().choose(step.copy(), together)
        assert found == [Sampler().choose(step[[row]].copy(), [state])[0] for row, state in enumerate(alone)]
        assert all(isinstance(choice, Choice) for choice in found)


@given(st.integers(0, 10**6), st.integers(0, 20))
def test_logprobs_are_the_log_softmax_of_the_models_own_logits(seed: int, num_top: int) -> None:
    import torch

    logits = scores_of(seed)
    params = SamplingParams(temperature=1.7, top_k=3, repetition_penalty=1.9, top_logprobs=num_top)
    [choice] = Sampler().choose(logits[None].copy(), [SamplingState(params, (1, 2, 3))])
    expected = torch.log_softmax(torch.from_numpy(logits.astype(np.float64)), -1).numpy()
    assert choice.logprobs.of_chosen == pytest.approx(expected[choice.token_id], abs=1e-5)
    assert [token_id for token_id, _ in choice.logprobs.top] == np.argsort(-expected, kind="stable")[:num_top].tolist()
    assert [value for _, value in choice.logprobs.top] == pytest.approx(np.sort(expected)[::-1][:num_top], abs=1e-5)
