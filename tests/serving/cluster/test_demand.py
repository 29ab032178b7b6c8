"""How many replicas a load wants: arithmetic alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cluster.demand import Demand, FirstTokens, ReplicaLoad, demand, load_of
from serving.ray_settings import ScalingTargets

NOTHING = ScalingTargets(tokens=None, images=None, cache_share=None)


def num_replicas(loads: list[ReplicaLoad], num_queued: float = 0, target_requests: float = 8, **targets: float) -> int:
    return demand(loads, num_queued, NOTHING.model_copy(update=targets), target_requests).num_replicas


def test_an_idle_model_wants_no_replica() -> None:
    assert num_replicas([ReplicaLoad(), ReplicaLoad()], tokens=100, images=1, cache_share=0.5, first_token_s=1) == 0


@pytest.mark.parametrize(
    ("load", "targets"),
    [
        (ReplicaLoad(requests=17), {}),
        (ReplicaLoad(requests=1, tokens=2100), {"tokens": 1000}),
        (ReplicaLoad(requests=1, images=9), {"images": 4}),
        (ReplicaLoad(requests=1, cache_share=1.9), {"cache_share": 0.9}),
    ],
    ids=["requests", "tokens", "images", "cache"],
)
def test_the_fullest_measure_decides(load: ReplicaLoad, targets: dict[str, float]) -> None:
    assert num_replicas([load, ReplicaLoad(requests=1)], **targets) == 3


def test_a_measure_without_a_target_is_not_looked_at() -> None:
    assert num_replicas([ReplicaLoad(requests=1, tokens=1e9, images=1e9, cache_share=1e9, first_token_s=1e9)]) == 1


def test_requests_that_no_replica_has_weigh_as_those_that_one_has() -> None:
    """Two requests hold 1,000 tokens and two more wait at the ingress: 2,000 tokens in all."""
    assert num_replicas([ReplicaLoad(requests=2, tokens=1000)], 2, tokens=500) == 4
    assert num_replicas([ReplicaLoad()], 24) == 3  # nothing is known of them but their number


def test_a_missed_first_token_objective_wants_one_more_than_run() -> None:
    late = ReplicaLoad(requests=4, first_token_s=2.0)
    assert num_replicas([late, ReplicaLoad(requests=4)], first_token_s=1.0) == 3
    assert num_replicas([late, ReplicaLoad(requests=4)], first_token_s=3.0) == 1


def test_an_objective_that_one_request_alone_misses_wants_no_replica_more() -> None:
    """It had a replica for itself: another one would be as slow."""
    assert num_replicas([ReplicaLoad(requests=1, first_token_s=9.0)], first_token_s=1.0) == 1


@given(st.integers(1, 50), st.integers(1, 12))
def test_load_that_replicas_carry_just_at_the_target_wants_as_many(target: int, num: int) -> None:
    """Sums of floats must not round up to one more, which would never be taken away."""
    assert num_replicas([ReplicaLoad(requests=target / 3 * 3)] * num, target_requests=target) == num
    assert num_replicas([ReplicaLoad(cache_share=0.1)] * num, cache_share=0.1) == num


@pytest.mark.parametrize(
    ("load", "target", "wanted"),
    [
        (2.0, 2, 2),
        (2.15, 2, 2),
        (2.25, 2, 3),
        (1.85, 2, 2),
        (1.75, 3, 2),
        (2.8, 3, 3),
        (0.0, 1, 0),
        (0.5, 1, 1),
        (0.3, 0, 1),
    ],
)
def test_a_load_about_that_of_the_replicas_changes_nothing(load: float, target: int, wanted: int) -> None:
    assert Demand({"requests": load}).num_replicas_from(target) == wanted


def test_no_measure_wants_nothing() -> None:
    assert Demand({}).num_replicas == 0


def test_an_engines_gauges_become_the_load() -> None:
    gauges = {
        "num_requests_running": 2.0,
        "num_requests_waiting": 3.0,
        "num_tokens_running": 500.0,
        "num_tokens_waiting": 250.0,
        "kv_cache_rows": 1000.0,
        "kv_cache_usage_perc": 0.5,
        "num_images_waiting": 4.0,
    }
    assert load_of(gauges, 0.2) == ReplicaLoad(5, 750, 4, 0.75, 0.2)
    assert load_of({}, 0.0) == ReplicaLoad()


def test_first_tokens_count_for_half_a_minute() -> None:
    now_s = [0.0]
    first_tokens = FirstTokens(lambda: now_s[0])
    assert first_tokens.p95_s == 0
    for hundredths in range(100):
        first_tokens.add(hundredths / 100)
    assert first_tokens.p95_s == 0.94
    now_s[0] = 31.0
    assert first_tokens.p95_s == 0
