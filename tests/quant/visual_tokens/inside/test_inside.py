"""Which image tokens go on: by small ports of the papers in torch, by hand-made cases, by what every method keeps."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.visual_exit import Router, features_of
from quant.visual_tokens.inside.aim_pruning import AimPruning
from quant.visual_tokens.inside.dyvte import DyVTE
from quant.visual_tokens.inside.fastv import FastV
from quant.visual_tokens.inside.ranking import num_kept
from runtime.segmented_prompt import Cut

HEADS, KV_HEADS, SIZE, WIDTH = 6, 2, 8, 12


def cut_of(seed: int = 0, number: int = 0, num_cuts: int = 2, num_rows: int = 23, num_image_tokens: int = 12) -> Cut:
    rng = np.random.default_rng(seed)
    is_image = np.zeros(num_rows, bool)
    is_image[rng.permutation(num_rows - 1)[:num_image_tokens]] = True
    return Cut(
        number,
        num_cuts,
        2 * number + 2,
        8,
        is_image,
        num_image_tokens,
        rng.normal(size=(num_rows, WIDTH)).astype(np.float32),
        rng.normal(size=(num_rows, HEADS, SIZE)).astype(np.float32),
        rng.normal(size=(num_rows, KV_HEADS, SIZE)).astype(np.float32),
    )


def torch_attention(cut: Cut, temperature: float = 1.0) -> Any:
    """Return torch's [H, L, L], causal."""
    import torch

    queries = torch.from_numpy(cut.queries).transpose(0, 1)
    keys = torch.from_numpy(cut.keys).transpose(0, 1).repeat_interleave(HEADS // KV_HEADS, dim=0)
    logits = queries @ keys.transpose(1, 2) / SIZE**0.5 / temperature
    hidden = torch.ones(len(cut.hidden), len(cut.hidden), dtype=torch.bool).triu(1)
    return logits.masked_fill(hidden, float("-inf")).softmax(-1)


@pytest.mark.parametrize("keep", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_fastv_keeps_what_the_last_token_looks_at_most(keep: float, seed: int) -> None:
    import torch

    cut = cut_of(seed)
    of_last = torch_attention(cut).mean(0)[-1]
    images = torch.from_numpy(cut.image_rows)
    best = of_last[images].topk(ceil(len(images) * keep)).indices
    assert FastV(keep)(cut).tolist() == images[best].sort().values.tolist()


def test_fastv_drops_at_the_first_cut_alone() -> None:
    later = cut_of(number=1)
    np.testing.assert_array_equal(FastV(0.1)(later), later.image_rows)


@pytest.mark.parametrize("seed", range(5))
def test_aim_keeps_the_highest_page_rank(seed: int) -> None:
    import torch

    cut = cut_of(seed)
    edges = torch_attention(cut, 0.1).mean(0)
    ranks = torch.full((len(edges),), 1 / len(edges))
    for _ in range(5):
        ranks = edges.T @ ranks
    images = torch.from_numpy(cut.image_rows)
    best = ranks[images].topk(9).indices
    assert AimPruning(0.5)(cut).tolist() == images[best].sort().values.tolist()


def test_aim_prunes_in_equal_steps() -> None:
    kept = [len(AimPruning(0.25)(cut_of(number=number, num_cuts=3))) for number in range(3)]
    assert kept == [9, 6, 3]


def test_tokens_that_all_look_at_rank_highest() -> None:
    cut = cut_of()
    needle = cut.image_rows[3]
    cut.keys[needle] = 9
    cut.queries[:] = np.abs(cut.queries)
    assert needle in FastV(1 / 12)(cut)
    assert needle in AimPruning(0.01)(cut)


@given(share=st.floats(0.001, 1), num=st.integers(1, 500))
def test_a_share_keeps_at_least_one_and_all_of_all(share: float, num: int) -> None:
    assert 1 <= num_kept(num, share) <= num
    assert num_kept(num, 1.0) == num


def test_a_share_is_not_rounded_up_by_what_floats_cannot_hold() -> None:
    assert num_kept(30, 0.1) == 3


@pytest.mark.parametrize("method", [FastV(0.3), AimPruning(0.3), DyVTE(0.1, {})])
def test_methods_return_image_tokens_in_order(method) -> None:
    cut = cut_of()
    found = method(cut)
    assert np.isin(found, cut.image_rows).all()
    assert (np.diff(found) > 0).all()


def sure_router(answer: float) -> Router:
    return Router(np.zeros((1, 2 * WIDTH + 1), np.float32), np.array([0, answer], np.float32))


def test_a_router_lets_all_image_tokens_leave_or_none() -> None:
    cut = cut_of()
    assert len(DyVTE(0.25, {cut.layer: sure_router(1)})(cut)) == 0
    np.testing.assert_array_equal(DyVTE(0.25, {cut.layer: sure_router(-1)})(cut), cut.image_rows)


def test_no_image_token_leaves_before_the_share_of_layers_that_sees_it() -> None:
    routers = {2: sure_router(1), 4: sure_router(1)}
    first, second = cut_of(number=0), cut_of(number=1)
    np.testing.assert_array_equal(DyVTE(0.26, routers)(first), first.image_rows)
    assert len(DyVTE(0.26, routers)(second)) == 0
    assert len(DyVTE(1.0, routers)(second)) == 12


def test_no_image_token_leaves_at_a_cut_without_a_router() -> None:
    cut = cut_of()
    np.testing.assert_array_equal(DyVTE(0.01, {4: sure_router(1)})(cut), cut.image_rows)


def test_a_router_is_the_network_that_torch_would_run() -> None:
    import torch

    rng, text = np.random.default_rng(0), np.random.default_rng(1).normal(size=(5, WIDTH)).astype(np.float32)
    router = Router(rng.normal(size=(7, 2 * WIDTH + 1)).astype(np.float32), rng.normal(size=8).astype(np.float32))
    both = torch.stack([torch.from_numpy(text).mean(0), torch.from_numpy(text)[-1]])
    unit = torch.nn.functional.rms_norm(both, (WIDTH,), eps=0.0).flatten()
    network = torch.nn.Sequential(torch.nn.Linear(2 * WIDTH, 7), torch.nn.ReLU(), torch.nn.Linear(7, 1))
    first, last = network[0], network[2]
    with torch.no_grad():
        first.weight.copy_(torch.from_numpy(router.hidden[:, :-1]))
        first.bias.copy_(torch.from_numpy(router.hidden[:, -1]))
        last.weight.copy_(torch.from_numpy(router.out[None, :-1]))
        last.bias.copy_(torch.from_numpy(router.out[-1:]))
        assert router.logit(features_of(text)) == pytest.approx(float(network(unit)[0]), abs=1e-4)
