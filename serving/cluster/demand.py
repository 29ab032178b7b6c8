"""How many replicas a model's load wants: plain arithmetic over what its replicas told, and no word of Ray."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from serving.ray_settings import ScalingTargets

_FIRST_TOKENS_S = 30.0
"""How long a first token counts: with an idle replica's, the objective would be missed for ever."""
_MOST_FIRST_TOKENS = 512
_SHARED_REQUESTS = 1.0
"""Per replica; where they are no more, another replica makes no first token come sooner."""
_ROUNDING = 1e-6
_TOLERANCE = 0.1
"""Of the replicas that there shall be, by which a load may differ before their number does: one that lies just at a
target would bring a replica and take it away again. As Kubernetes' autoscaler has it."""


@dataclass(frozen=True)
class ReplicaLoad:
    """What one replica carries, as it tells Ray's autoscaler.

    Attributes:
        requests: Running and waiting.
        tokens: Of running requests, and of prompts that wait.
        images: That wait for the vision encoder or are in it.
        cache_share: Rows in use, and rows that waiting prompts will take, as a share of all.
        first_token_s: 95th percentile of the last half minute; 0 where there was none.
    """

    requests: float = 0.0
    tokens: float = 0.0
    images: float = 0.0
    cache_share: float = 0.0
    first_token_s: float = 0.0


LOAD_NAMES = tuple(each.name for each in fields(ReplicaLoad))


def load_of(gauges: Mapping[str, float], first_token_s: float) -> ReplicaLoad:
    """Return what a replica carries by its engine's gauges; what an engine does not tell is 0."""
    running, waiting = gauges.get("num_tokens_running", 0.0), gauges.get("num_tokens_waiting", 0.0)
    usage, most_rows = gauges.get("kv_cache_usage_perc", 0.0), gauges.get("kv_cache_rows", 0.0)
    return ReplicaLoad(
        gauges.get("num_requests_running", 0.0) + gauges.get("num_requests_waiting", 0.0),
        running + waiting,
        gauges.get("num_images_waiting", 0.0),
        usage + (waiting / most_rows if most_rows else 0.0),
        first_token_s,
    )


class FirstTokens:
    """Times to the first tokens of late.

    Args:
        now_s: The clock.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._taken: deque[tuple[float, float]] = deque(maxlen=_MOST_FIRST_TOKENS)

    def add(self, first_token_s: float) -> None:
        """Take one down."""
        self._taken.append((self._now_s(), first_token_s))

    @property
    def p95_s(self) -> float:
        """The 95th percentile of the last half minute; 0 where there was none."""
        since_s = self._now_s() - _FIRST_TOKENS_S
        while self._taken and self._taken[0][0] < since_s:
            self._taken.popleft()
        return nearest_rank([first_s for _, first_s in self._taken], 0.95)


def nearest_rank(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least this share of all values does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else 0.0


@dataclass(frozen=True)
class Demand:
    """How many replicas each kind of load wants, by its name; fractions are of a replica."""

    replicas: Mapping[str, float]

    @property
    def num_replicas(self) -> int:
        """Replicas that are enough for every kind."""
        return math.ceil(self._most - _ROUNDING)

    def num_replicas_from(self, target: int) -> int:
        """Return how many there shall be where so many shall be now: as many where the load is about theirs."""
        return target if abs(self._most - target) <= _TOLERANCE * target else self.num_replicas

    @property
    def _most(self) -> float:
        return max(self.replicas.values(), default=0.0)


def demand(loads: Sequence[ReplicaLoad], num_queued: float, targets: ScalingTargets, target_requests: float) -> Demand:
    """Return how many replicas a load wants.

    Requests that no replica has yet count as much as those that one has, token for token and image for image.

    Args:
        loads: Of the replicas that run, at least one.
        num_queued: Requests that wait where they came in, for every replica is full.
        targets: What a replica shall carry.
        target_requests: Requests that a replica shall carry.
    """
    total = _summed(loads)
    growth = 1 + num_queued / total.requests if total.requests else 1.0
    wanted = {"requests": (total.requests + num_queued) / target_requests}
    for name in ("tokens", "images", "cache_share"):
        target = getattr(targets, name)
        if target is not None:
            wanted[name] = getattr(total, name) * growth / target
    if _is_late(loads, num_queued, targets.first_token_s):
        wanted["first_token_s"] = len(loads) + 1.0
    return Demand(wanted)


def _is_late(loads: Sequence[ReplicaLoad], num_queued: float, objective_s: float | None) -> bool:
    num_requests = sum(each.requests for each in loads) + num_queued
    shared = num_requests > _SHARED_REQUESTS * len(loads)
    return objective_s is not None and shared and max(each.first_token_s for each in loads) > objective_s


def _summed(loads: Sequence[ReplicaLoad]) -> ReplicaLoad:
    return ReplicaLoad(*(sum(getattr(each, name) for each in loads) for name in LOAD_NAMES))
