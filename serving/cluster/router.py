"""Ray's choice of a replica, among those that answer.

Ray sends this module by value: what it shares with its process is another module's, reached by functions.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from typing import Any

from ray.exceptions import ActorDiedError, RayError
from ray.serve.request_router import (
    FIFOMixin,
    LocalityMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from serving.cluster.affinity import Contents, Whereabouts, contents_of
from serving.cluster.watch import ROUND_S, tell_caller, watch_of

_MOST_UNSENT = 1024
"""Requests on their way whose contents are kept: those that nobody waits for any more are never routed."""


class _Watching(LocalityMixin, RequestRouter):  # type: ignore[misc]  # Ray is not typed
    """Asks each replica once a round for a sign of life, and takes the less busy of two that give one.

    Ray makes one in every process that sends requests to the deployment. The choice of two, nearer replicas first, is
    that of Ray's own `PowerOfTwoChoicesRequestRouter`.
    """

    def initialize_state(self, deployment: str, silent_after_s: float) -> None:
        """Begin the watch; called by Ray, on the loop that the router runs on.

        Args:
            deployment: Whose replicas these are.
            silent_after_s: See `ReplicaWatch`.
        """
        self._watch = watch_of(deployment)
        self._watch.silent_after_s = silent_after_s
        self._questions: dict[ReplicaID, asyncio.Task[None]] = {}
        self._watching = asyncio.get_running_loop().create_task(self._keep_watch())

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return two replicas that answer; one or none where there are no more."""
        near = self.apply_locality_routing(pending_request=pending_request)
        fit = [each for each in candidate_replicas if each.replica_id in near and self._is_fit(each)]
        return [random.sample(fit, min(2, len(fit)))]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Tell the request's caller which replica took it."""
        tell_caller(replica_id.unique_id)

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        """Pass a replica over that could not be reached: its node may be gone, which takes Ray seconds to know."""
        super().on_replica_actor_unavailable(replica_id)
        self._watch.doubt(replica_id.unique_id)

    def _is_fit(self, replica: RunningReplica) -> bool:
        return self._watch.is_fit(replica.replica_id.unique_id)

    async def _keep_watch(self) -> None:
        while True:
            replicas = dict(self.curr_replicas)
            self._watch.begin_round({key.unique_id: each.routing_stats for key, each in replicas.items()})
            self._questions = {key: task for key, task in self._questions.items() if not task.done()}
            for key, replica in replicas.items():
                if key not in self._questions:
                    self._questions[key] = asyncio.create_task(self._ask(key, replica))
            await asyncio.sleep(ROUND_S)

    async def _ask(self, key: ReplicaID, replica: Any) -> None:
        try:
            # Answered by a thread of its own, however busy the replica is.
            await replica.get_queue_len(deadline_s=ROUND_S)
        except ActorDiedError:
            self.on_replica_actor_died(key)
            self._watch.forget([key.unique_id])
        except RayError:
            pass  # a sign of life did not come: the round stays missed
        else:
            self._watch.hear(key.unique_id)


class WatchingRouter(FIFOMixin, _Watching):  # type: ignore[misc]
    """Sends requests in the order in which they came, wherever there is the least to do."""


class ContentRouter(_Watching):
    """Prefers the replica that holds what a request brings, and takes the less busy of two where none does.

    A replica that becomes free goes to the request that was sent to it, not to the one that came first.
    """

    def initialize_state(self, deployment: str, silent_after_s: float) -> None:
        """Begin the watch, with nothing known of where anything is."""
        super().initialize_state(deployment, silent_after_s)
        self._whereabouts = Whereabouts()
        self._contents: OrderedDict[str, Contents] = OrderedDict()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replica that is to be preferred, if there is one, then two others in case that it is full."""
        others = await super().choose_replicas(candidate_replicas, pending_request)
        if pending_request is None:
            return others
        fit = {each.replica_id.unique_id: each for each in candidate_replicas if self._is_fit(each)}
        loads = {name: self._load(name, each) for name, each in fit.items()}
        preferred = self._whereabouts.preferred(self._contents_of(pending_request), loads)
        return others if preferred is None else [[fit[preferred]], *others]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Tell the request's caller which replica took it, and remember what is there from now on."""
        super().on_request_routed(pending_request, replica_id, result)
        self._whereabouts.note(self._contents_of(pending_request), replica_id.unique_id)
        self._contents.pop(pending_request.metadata.internal_request_id, None)

    def _load(self, name: str, replica: RunningReplica) -> float:
        """Return how many requests a replica has: as this process counts them, or as the replica told last."""
        counted = self.replica_queue_len_cache.get(replica.replica_id)
        return self._watch.num_requests(name) if counted is None else float(counted)

    def _contents_of(self, pending_request: PendingRequest) -> Contents:
        """Return what a request brings; computed once, however often it is tried."""
        key = pending_request.metadata.internal_request_id
        if key not in self._contents:
            args = pending_request.args
            self._contents[key] = contents_of(args[0] if args else None)
            if len(self._contents) > _MOST_UNSENT:
                self._contents.popitem(last=False)
        return self._contents[key]
