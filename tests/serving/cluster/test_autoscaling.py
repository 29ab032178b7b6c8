"""The policy as Ray's controller calls it: its context, its delays, its bounds; no cluster runs."""

from __future__ import annotations

import json
import warnings
from typing import Any

from pydantic import PydanticDeprecatedSince20

from serving.cluster.demand import ReplicaLoad
from serving.ray_settings import ScalingSettings

with warnings.catch_warnings():
    # Ray 2.60 declares its own settings in a way that pydantic will drop.
    warnings.simplefilter("ignore", PydanticDeprecatedSince20)
    from ray.serve._private.autoscaling_state import _resolve_policy_callable
    from ray.serve._private.common import DeploymentID
    from ray.serve.autoscaling_policy import _apply_autoscaling_config
    from ray.serve.config import AutoscalingContext

    from serving.cluster.application import autoscaling

SCALING = ScalingSettings.model_validate(
    {"min_replicas": 0, "max_replicas": 9, "upscale_delay_s": 0, "downscale_delay_s": 0, "targets": {"tokens": 100}}
)


def decided(
    loads: dict[str, ReplicaLoad], *, total: float = 0, queued: float = 0, target: int = 1, running: int | None = None
) -> int:
    """Return what Ray makes of the policy, which is unpickled as its controller does."""
    config = autoscaling(SCALING)
    policy = _apply_autoscaling_config(_resolve_policy_callable(config.policy))
    names = ("requests", "tokens", "images", "cache_share", "first_token_s")
    replicas: list[Any] = list(loads) if running is None else [f"r{at}" for at in range(running)]
    context = AutoscalingContext(
        deployment_id=DeploymentID("generator-m"),
        deployment_name="generator-m",
        app_name="a",
        current_num_replicas=len(replicas),
        target_num_replicas=target,
        running_replicas=replicas,
        total_num_requests=total,
        total_queued_requests=queued,
        aggregated_metrics={name: {key: getattr(load, name) for key, load in loads.items()} for name in names},
        raw_metrics={},
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=9,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=config,
    )
    return policy(context)[0]


def test_tokens_bring_replicas_though_requests_are_few() -> None:
    assert decided({"r0": ReplicaLoad(requests=2, tokens=350)}, total=2) == 4


def test_requests_that_ray_sees_and_no_replica_told_of_yet_count() -> None:
    assert decided({"r0": ReplicaLoad(), "r1": ReplicaLoad()}, total=40, queued=10) == 5
    assert decided({}, total=40, running=2, target=2) == 5


def test_the_last_replica_goes_when_nothing_is_left_and_the_first_comes_with_a_request() -> None:
    assert decided({"r0": ReplicaLoad()}) == 0
    assert decided({}, target=0) == 0
    assert decided({}, target=0, total=1, queued=1) == 1


def test_replicas_that_start_are_waited_for() -> None:
    assert decided({}, target=2) == 2


def test_what_ray_carries_of_the_policy_is_plain_data() -> None:
    kwargs = autoscaling(SCALING).policy.policy_kwargs
    assert json.loads(json.dumps(kwargs)) == kwargs
