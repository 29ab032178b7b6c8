"""One encoder's worker thread: what concurrent requests want encoded runs together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty
from typing import Generic, TypeVar

from bundle.errors import EngineDeadError
from serving.engine.faults import explained
from serving.engine.job import Job
from serving.engine.worker import Worker
from serving.watch import Patience

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Job(Job[Result], Generic[Item, Result]):
    def __init__(self, item: Item) -> None:
        super().__init__()
        self.item = item


class BatchWorker(Worker[_Job[Item, Result]], Generic[Item, Result]):
    """Runs queued items in batches; a batch that fails fails its own items only.

    Args:
        name: Of the thread.
        run: Items to as many results, in order; called on the worker's thread alone.
        weigh: An item's share of a batch.
        max_weight: Of a batch; an item heavier than that runs alone.
        patience: See `Worker`.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[list[Item]], Sequence[Result]],
        weigh: Callable[[Item], int],
        max_weight: int,
        patience: Patience,
    ) -> None:
        super().__init__(name, patience)
        self._run_batch = run
        self._weigh = weigh
        self._max_weight = max_weight
        self._batch: list[_Job[Item, Result]] = []
        self._next: _Job[Item, Result] | None = None

    @property
    def has_work(self) -> bool:
        """True while a batch runs or waits."""
        return bool(self._batch) or self._next is not None

    def submit(self, item: Item) -> Future[Result]:
        """Queue an item and return its future; cancelling it before its batch starts drops the item.

        Raises:
            EngineDeadError: The thread died or was stopped.
        """
        job: _Job[Item, Result] = _Job(item)
        self._send(job)
        return job.future

    def _step(self) -> bool:
        if not self._collect():
            return False
        jobs = [job for job in self._batch if job.try_begin()]
        self._batch = jobs
        if jobs:
            self._finish(jobs)
        self._batch = []
        return True

    def _collect(self) -> bool:
        """Fill the next batch, waiting for its first item; False when it is time to stop."""
        weight = 0
        while True:
            try:
                job = self._next or self._inbox.get(block=not self._batch)
            except Empty:
                return True
            self._beat()
            if job is None:
                return False
            weight += self._weigh(job.item)
            if self._batch and weight > self._max_weight:
                self._next = job
                return True
            self._next = None
            self._batch.append(job)

    def _finish(self, jobs: list[_Job[Item, Result]]) -> None:
        try:
            results = self._run_batch([job.item for job in jobs])
        except Exception as error:
            logger.exception("%s: a batch of %d failed", self.name, len(jobs))
            for job in jobs:
                job.fail(explained(error))
            return
        for job, result in zip(jobs, results, strict=True):
            job.finish(result)

    def _abandon(self, error: EngineDeadError, messages: Sequence[_Job[Item, Result]]) -> None:
        unfinished = [*self._batch, *([self._next] if self._next else []), *messages]
        for job in unfinished:
            job.fail(error)
