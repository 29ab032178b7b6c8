"""Ray's choice of a replica, among those that answer.

Ray sends this module by value: what it shares with its process is another module's, reached by functions.
"""

from __future__ import annotations

import asyncio
import random
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

from serving.cluster.watch import ROUND_S, tell_caller, watch_of


class WatchingRouter(FIFOMixin, LocalityMixin, RequestRouter):  # type: ignore[misc]  # Ray is not typed
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
