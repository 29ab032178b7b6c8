"""Policies against ports of the published code to torch (tests/kv_ports.py)."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from quant.kv.compression import num_kept_rows

SHAPES = [
    pytest.param({"num_rows": 300}, id="grouped"),
    pytest.param({"num_rows": 300, "num_kv": 4, "group": 1}, id="multi-head"),
    pytest.param({"num_rows": 301, "num_kv": 1, "group": 5}, id="one key head, odd rows"),
    pytest.param({"num_rows": 20}, id="window longer than the prompt"),
    pytest.param({"num_rows": 33}, id="one row before the window"),
    pytest.param({"num_rows": 700, "num_kv": 3, "group": 3, "size": 64}, id="several lags"),
]
BUDGETS = [0.1, 0.2, 0.5, 0.9]
PORTED = ["snapkv", "tova", "h2o", "look-m", "look-m-averaged", "look-m-weighted", "vl-cache"]
PORTED += ["knorm", "keydiff", "lagkv"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", PORTED)
def test_a_policy_keeps_the_rows_that_a_port_of_its_paper_keeps(
    kv_layers: ModuleType, kv_ports: ModuleType, name: str, budget: float, shape: dict[str, int]
) -> None:
    layer = kv_layers.random_layer(**shape, seed=3)
    count = num_kept_rows(layer.num_rows, budget)
    np.testing.assert_array_equal(kv_layers.kept_by(name, layer, budget), kv_ports.PORTS[name](layer, count))


@pytest.mark.parametrize("budget", BUDGETS)
def test_pyramidkv_chooses_as_snapkv_with_one_window_for_all_layers(
    kv_layers: ModuleType, kv_ports: ModuleType, budget: float
) -> None:
    layer = kv_layers.random_layer(num_rows=400, seed=5)
    mean = num_kept_rows(400, budget)
    policy = kv_layers.policy_of("pyramidkv", layer, mean)
    for count in policy.counts([1.0] * 12):
        wanted = kv_ports.snapkv(layer, count, min(32, mean // 2))
        np.testing.assert_array_equal(policy.kept(layer, count), wanted)


@pytest.mark.parametrize("name", ["look-m", "look-m-averaged", "look-m-weighted"])
@pytest.mark.parametrize("part", ["keys", "values"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_look_m_merges_as_its_equations_say(
    kv_layers: ModuleType, kv_ports: ModuleType, name: str, part: str, budget: float
) -> None:
    layer = kv_layers.random_layer(num_rows=120, seed=8)
    count = num_kept_rows(120, budget)
    policy = kv_layers.policy_of(name, layer, count)
    kept = policy.kept(layer, count)
    found = getattr(policy.merged(layer, kept), part)
    for head, wanted in enumerate(kv_ports.merged(name, layer, kept, part)):
        # Sums of float32 in another order.
        np.testing.assert_allclose(found[head], wanted.numpy(), rtol=0, atol=2e-6)
