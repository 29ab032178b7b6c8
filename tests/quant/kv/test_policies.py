"""What holds of every policy, and what one is made for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import ParameterError
from quant.kv.compression import KeptLayer, compress, num_kept_rows
from quant.kv.policy import LayerRows
from quant.kv.table import POLICIES, entry_of, load_policy

ALL = sorted(POLICIES)
SHAPES = st.tuples(st.integers(1, 300), st.integers(1, 3), st.integers(1, 3), st.integers(1, 40))


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(ALL), shape=SHAPES, budget=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_whatever_the_prompt_each_head_keeps_as_many_rows_of_its_own_in_order(
    kv_layers, name, shape, budget, seed
) -> None:
    num_rows, num_kv, group, window = shape
    layer = kv_layers.random_layer(num_rows, num_kv, group, 8, window, seed)
    num_kept = max(num_kept_rows(num_rows, budget), 1)
    rows = kv_layers.policy_of(name, layer, num_kept).kept(layer, num_kept)
    assert rows.shape == (num_kv, num_kept)
    assert (np.diff(rows, axis=1) > 0).all()
    assert rows.min() >= 0
    assert rows.max() < num_rows


@pytest.mark.parametrize("name", ALL)
def test_keeping_all_rows_changes_no_bit(kv_layers, name: str) -> None:
    layer = kv_layers.random_layer(90)
    policy = kv_layers.policy_of(name, layer, 90)
    kept = policy.kept(layer, 90)
    np.testing.assert_array_equal(kept, np.tile(np.arange(90), (2, 1)))
    merged = policy.merged(layer, kept)
    if merged is not None:
        np.testing.assert_array_equal(merged.keys, layer.keys)
        np.testing.assert_array_equal(merged.values, layer.values)


@pytest.mark.parametrize("name", ALL)
def test_the_same_prompt_keeps_the_same_rows(kv_layers, name: str) -> None:
    first, second = (kv_layers.kept_by(name, kv_layers.random_layer(200, seed=4), 0.3) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_random_rows_differ_by_prompt_by_layer_and_by_head(kv_layers) -> None:
    layer = kv_layers.random_layer(200)
    rows = kv_layers.kept_by("random", layer, 0.3)
    assert (rows[0] != rows[1]).any()
    for other in (replace(layer, seed=1), replace(layer, index=1)):
        assert (kv_layers.kept_by("random", other, 0.3) != rows).any()


@pytest.mark.parametrize(
    ("num_kept", "rows"), [(1, [99]), (2, [0, 99]), (4, [0, 33, 66, 99]), (5, [0, 25, 50, 74, 99])]
)
def test_uniform_rows_are_even(kv_layers, num_kept: int, rows: list[int]) -> None:
    layer = kv_layers.random_layer(100)
    found = kv_layers.policy_of("uniform", layer, num_kept).kept(layer, num_kept)
    assert found.tolist() == [rows] * 2


@pytest.mark.parametrize("num_kept", [6, 20, 99])
def test_streaming_llm_keeps_four_sinks_and_what_is_recent_exactly(kv_layers, num_kept: int) -> None:
    layer = kv_layers.random_layer(100)
    found = kv_layers.policy_of("streaming-llm", layer, num_kept).kept(layer, num_kept)
    assert found.tolist() == [[0, 1, 2, 3, *range(100 - num_kept + 4, 100)]] * 2


@pytest.mark.parametrize("num_kept", [1, 2, 3, 4])
def test_streaming_llm_keeps_the_last_row_of_however_few(kv_layers, num_kept: int) -> None:
    layer = kv_layers.random_layer(100)
    found = kv_layers.policy_of("streaming-llm", layer, num_kept).kept(layer, num_kept)
    assert found.tolist() == [[*range(num_kept - 1), 99]] * 2


def with_needle(layer: LayerRows, row: int) -> LayerRows:
    """Return a layer one of whose keys is what the last queries look for."""
    keys, queries = layer.keys.copy(), layer.queries.copy()
    sought = np.zeros(keys.shape[-1], np.float32)
    sought[0] = 12
    queries[:] = sought + 0.1 * queries
    keys[:, row] = sought
    return replace(layer, keys=keys, queries=queries)


@pytest.mark.parametrize("name", [name for name in ALL if POLICIES[name].needs_queries])
@pytest.mark.parametrize("row", [0, 7, 130, 150])
def test_a_row_that_the_last_queries_look_for_stays(kv_layers, name: str, row: int) -> None:
    layer = with_needle(kv_layers.random_layer(200), row)
    assert (kv_layers.kept_by(name, layer, 0.15) == row).any(axis=1).all()


@pytest.mark.parametrize("name", ["look-m", "look-m-averaged", "look-m-weighted"])
def test_look_m_keeps_all_text_before_any_image(kv_layers, name: str) -> None:
    layer = kv_layers.random_layer(200)  # 80 image rows
    text = np.flatnonzero(~layer.is_image)
    for rows in kv_layers.policy_of(name, layer, 130).kept(layer, 130):
        assert set(text) <= set(rows)
    for rows in kv_layers.policy_of(name, layer, 100).kept(layer, 100):
        assert set(rows) <= set(text)


def test_only_images_are_merged(kv_layers) -> None:
    layer = replace(kv_layers.random_layer(100), is_image=np.zeros(100, np.bool_))
    policy = kv_layers.policy_of("look-m", layer, 20)
    kept = policy.kept(layer, 20)
    merged = policy.merged(layer, kept)
    np.testing.assert_array_equal(merged.keys, np.take_along_axis(layer.keys, kept[..., None], axis=1))


@pytest.mark.parametrize(("num_rows", "num_kept"), [(1200, 240), (1200, 120), (300, 200), (100, 10), (90, 80)])
def test_pyramidkv_gives_lower_layers_more_and_keeps_the_mean(kv_layers, num_rows: int, num_kept: int) -> None:
    counts = kv_layers.policy_of("pyramidkv", kv_layers.random_layer(num_rows), num_kept).counts([1.0] * 30)
    assert counts == sorted(counts, reverse=True)
    assert num_kept - 1 <= np.mean(counts) <= num_kept
    assert counts[0] > counts[-1] > 0
    assert counts[0] <= num_rows


def test_pyramidkv_keeps_what_its_equations_say(kv_layers) -> None:
    counts = kv_layers.policy_of("pyramidkv", kv_layers.random_layer(1200), 240).counts([1.0] * 30)
    least = (240 - 32) // 20
    most = 2 * (240 - 32) - least
    assert (counts[0], counts[-1]) == (32 + most, 32 + least)
    assert counts[13] == int(32 + most - 13 * (most - least) / 29)


def test_vl_cache_gives_more_to_layers_that_look_widely(kv_layers) -> None:
    wide, narrow = kv_layers.random_layer(200), with_needle(kv_layers.random_layer(200), 5)
    policy = kv_layers.policy_of("vl-cache", wide, 40)
    weights = [policy.weight(layer) for layer in (wide, narrow)]
    assert weights[0] > weights[1]
    counts = policy.counts(weights)
    assert counts[0] > 40 > counts[1] >= 2
    assert sum(counts) <= 2 * 40 + 2


def test_vl_cache_counts_density_as_its_equations_say(kv_layers) -> None:
    layer = replace(kv_layers.random_layer(40, num_kv=1, group=1, window=8), is_image=np.arange(40) < 36)
    scores = layer.queries[0, -4:] @ layer.keys[0].T / 4
    dense = 0
    for at, row in enumerate(scores):
        seen = np.exp(row[: 37 + at] - row[: 37 + at].max())
        dense += int((seen >= 0.01).sum())
    found = kv_layers.policy_of("vl-cache", layer, 10).weight(layer)
    assert found == pytest.approx(dense / (37 + 38 + 39 + 40))


def test_layers_are_read_once_unless_a_policy_weighs_them(kv_layers) -> None:
    for name, num_reads in (("snapkv", 1), ("vl-cache", 2), ("pyramidkv", 1)):
        layers, reads = [kv_layers.random_layer(100, seed=seed) for seed in range(3)], []

        def read(index: int, layers=layers, reads=reads) -> LayerRows:
            reads.append(index)
            return layers[index]

        done = list(compress(kv_layers.policy_of(name, layers[0], 20), range(3), read))
        assert reads == [0, 1, 2] * num_reads
        assert [each.index for each in done if isinstance(each, KeptLayer)] == [0, 1, 2]


def test_layers_of_one_length_group_keep_as_many_rows_and_no_more_than_the_budget(kv_layers) -> None:
    layers = [kv_layers.random_layer(400, seed=seed) for seed in range(6)]
    found = compress(kv_layers.policy_of("pyramidkv", layers[0], 80), [0, 0, 1, 1, 2, 2], layers.__getitem__)
    counts = [each.rows.shape[1] for each in found if each is not None]
    assert counts[::2] == counts[1::2]
    assert counts[0] > counts[2] > counts[4]
    assert sum(counts) <= 6 * 80


@pytest.mark.parametrize(("num_rows", "budget", "kept"), [(100, 0.29, 29), (1200, 0.2, 240), (7, 0.5, 3), (3, 0.3, 0)])
def test_a_budget_is_rounded_down_as_it_is_written(num_rows: int, budget: float, kept: int) -> None:
    assert num_kept_rows(num_rows, budget) == kept


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    for load in (entry_of, load_policy):
        with pytest.raises(ParameterError, match="'best' is unknown; it must be one of random, uniform") as caught:
            load("best")
        assert caught.value.param == "kv.policy"


def test_tables_say_what_policies_are(kv_layers) -> None:
    for name, entry in POLICIES.items():
        policy = load_policy(name)
        has_budgets = "counts" in vars(policy)
        assert entry.has_layer_budgets == has_budgets
        layer = replace(kv_layers.random_layer(50), queries=np.zeros((6, 0, 16), np.float32))
        if not entry.needs_queries:
            kv_layers.policy_of(name, layer, 10).kept(layer, 10)
