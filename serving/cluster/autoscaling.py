"""Ray's way to ask how many replicas a deployment wants, led to `serving.cluster.demand`.

Ray sends this module by value to its controller, which asks ten times a second. Delays, bounds, and the first replica
after zero are Ray's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.cluster.demand import LOAD_NAMES, ReplicaLoad, demand
from serving.ray_settings import ScalingTargets


class LoadPolicy:
    """A policy of Ray Serve's autoscaler: as many replicas as the fullest measure of load wants.

    Args:
        targets: Fields of `ScalingTargets`: Ray carries plain data.
        target_requests: Requests that a replica shall carry.
    """

    def __init__(self, targets: Mapping[str, Any], target_requests: float) -> None:
        self._targets = ScalingTargets.model_validate(targets)
        self._target_requests = target_requests

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Return how many replicas are wanted, and nothing to be kept.

        Args:
            context: Ray's, of one deployment.
        """
        if not context.current_num_replicas:
            return context.target_num_replicas, {}
        loads = loads_of(context.aggregated_metrics or {}, context.running_replicas)
        # What replicas tell is as old as their last report; Ray's own count of requests is another view of the same.
        told = sum(each.requests for each in loads)
        num_unseen = max(context.total_num_requests - told, context.total_queued_requests or 0.0, 0.0)
        wanted = demand(loads, num_unseen, self._targets, self._target_requests)
        return wanted.num_replicas_from(context.target_num_replicas), {}


def loads_of(metrics: Mapping[str, Mapping[Any, float]], replicas: list[Any]) -> list[ReplicaLoad]:
    """Return what each replica carries; one that told nothing yet carries nothing."""
    return [
        ReplicaLoad(*(float(metrics.get(name, {}).get(replica, 0.0)) for name in LOAD_NAMES)) for replica in replicas
    ]
