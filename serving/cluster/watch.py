"""What a process knows of the replicas that it sends requests to: who answers, who is silent, what they report.

Ray finds a dead replica at once. One that is stopped or hangs looks alive to it until its health checks have failed
three times, and meanwhile gets requests. So every process that routes asks its replicas itself, once a round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

ROUND_S = 1.0
"""Between two questions to a replica."""


@dataclass(frozen=True)
class Report:
    """What a replica says of its engine.

    Attributes:
        is_ready: It serves.
        reason: Why not, where not.
        gauges: Momentary values by metric name.
    """

    is_ready: bool = True
    reason: str = ""
    gauges: dict[str, float] = field(default_factory=dict)


@dataclass
class Call:
    """One request on its way.

    Attributes:
        replica: Which took it; None while none has. Filled by the router.
    """

    replica: str | None = None


CALL: ContextVar[Call | None] = ContextVar("CALL", default=None)
"""The call that the code now running sends: the router runs in the context that sent it."""


def tell_caller(replica: str) -> None:
    """Tell whoever sent the request that is being routed which replica took it."""
    if (call := CALL.get()) is not None:
        call.replica = replica


class ReplicaWatch:
    """The replicas of one deployment as this process sees them. A router fills it, whoever waits for an answer asks it.

    Attributes:
        silent_after_s: A replica that answers nothing for so long is silent. Counted in rounds, so that a pause of this
            process is not taken for one of the replicas.
        num_silences: How often a replica fell silent.
    """

    def __init__(self) -> None:
        self.silent_after_s = 5.0
        self.num_silences = 0
        self._missed_rounds: dict[str, int] = {}
        self._unreachable: set[str] = set()
        self._reports: dict[str, Report] = {}
        self._running: frozenset[str] = frozenset()

    @property
    def num_running(self) -> int:
        """Replicas that Ray runs."""
        return len(self._running)

    @property
    def has_fit(self) -> bool:
        """Whether any replica can take a request."""
        return any(self.is_fit(replica) for replica in self._running)

    @property
    def reason(self) -> str:
        """Why no replica can take a request; empty where one can."""
        if self.has_fit:
            return ""
        told = {self._fault_of(replica) for replica in self._running}
        return "; ".join(sorted(told)) or "no replica runs"

    @property
    def gauges(self) -> dict[str, dict[str, float]]:
        """What each running replica reported last."""
        return {replica: self._reports[replica].gauges for replica in sorted(self._running) if replica in self._reports}

    def num_requests(self, replica: str) -> float:
        """Return how many requests a replica has, as it reported last; 0 before it did."""
        gauges = self._reports.get(replica, Report()).gauges
        return gauges.get("num_requests_running", 0.0) + gauges.get("num_requests_waiting", 0.0)

    def is_silent(self, replica: str) -> bool:
        """Return whether a replica stopped answering; one that Ray took away meanwhile stays so."""
        return self._missed_rounds.get(replica, 0) * ROUND_S >= self.silent_after_s

    def is_fit(self, replica: str) -> bool:
        """Return whether a replica answers and its engine serves."""
        return not self._fault_of(replica)

    def begin_round(self, reports: Mapping[str, Mapping[str, Any]]) -> None:
        """Take down which replicas run and what they reported; each has missed this round until it answers.

        Args:
            reports: By replica, as `Replica.record_routing_stats` made them; empty before the first.
        """
        self._running = frozenset(reports)
        self._reports = {replica: Report(**told) for replica, told in reports.items() if told}
        self._unreachable &= self._running
        silent = {replica for replica in self._missed_rounds if self.is_silent(replica)}
        self._missed_rounds = {
            replica: self._missed_rounds.get(replica, 0) + 1 for replica in sorted(self._running | silent)
        }
        self.num_silences += sum(self.is_silent(replica) for replica in self._running - silent)

    def hear(self, replica: str) -> None:
        """Take down that a replica answered."""
        self._missed_rounds[replica] = 0
        self._unreachable.discard(replica)

    def doubt(self, replica: str) -> None:
        """Take down that a replica could not be reached; it gets no request until it answers."""
        self._unreachable.add(replica)

    def forget(self, replicas: Iterable[str]) -> None:
        """Take down that replicas are dead: Ray tells their callers."""
        for replica in replicas:
            self._missed_rounds.pop(replica, None)
            self._unreachable.discard(replica)
        self._running -= frozenset(replicas)

    def _fault_of(self, replica: str) -> str:
        if self.is_silent(replica):
            return f"a replica has been silent for more than {self.silent_after_s:g} s"
        if replica in self._unreachable:
            return "a replica cannot be reached"
        report = self._reports.get(replica, Report())
        return "" if report.is_ready else report.reason or "a replica is not ready"


_WATCHES: dict[str, ReplicaWatch] = {}


def watch_of(deployment: str) -> ReplicaWatch:
    """Return this process's watch over a deployment: Ray makes the routers, so they meet their callers here."""
    return _WATCHES.setdefault(deployment, ReplicaWatch())


def summed(gauges: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the sum of each gauge; of a usage, the fullest."""
    names = {name for each in gauges for name in each}
    return {
        name: (max if name.endswith("_perc") else sum)(each[name] for each in gauges if name in each)
        for name in sorted(names)
    }
