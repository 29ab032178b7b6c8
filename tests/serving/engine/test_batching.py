import threading
from concurrent.futures import Future

import pytest

from bundle.errors import EngineDeadError, MachineError
from serving.engine.batching import BatchWorker
from serving.watch import Patience


class Doubler:
    """Doubles numbers, remembers its batches, and can be held or made to fail."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, items: list[int]) -> list[int]:
        self.go.wait(20)
        self.batches.append(items)
        if 13 in items:
            raise RuntimeError("thirteen")
        if 99 in items:
            raise SystemExit("killed")
        return [2 * item for item in items]


@pytest.fixture
def doubler() -> Doubler:
    return Doubler()


@pytest.fixture
def worker(doubler: Doubler):
    worker = BatchWorker("doubler", doubler, lambda item: item, 10, Patience(0.05, 0.2))
    worker.start()
    yield worker
    doubler.go.set()
    worker.close()


def results(futures: list[Future[int]]) -> list[int]:
    return [future.result(20) for future in futures]


def test_waiting_items_run_together_up_to_the_weight_of_a_batch_in_order(worker, doubler) -> None:
    futures = [worker.submit(item) for item in (1, 4, 5, 2, 12, 3)]
    doubler.go.set()
    assert results(futures) == [2, 8, 10, 4, 24, 6]
    assert [item for batch in doubler.batches for item in batch] == [1, 4, 5, 2, 12, 3]
    assert all(sum(batch) <= 10 or len(batch) == 1 for batch in doubler.batches)
    assert len(doubler.batches) < 6


def test_a_failed_batch_fails_its_items_and_no_other(worker, doubler) -> None:
    first, bad, mate, after = (worker.submit(item) for item in (9, 13, 1, 10))
    doubler.go.set()
    assert first.result(20) == 18
    with pytest.raises(MachineError, match="thirteen"):
        bad.result(20)
    assert results([mate, after]) == [2, 20]
    assert worker.fault == ""


def test_a_cancelled_item_is_not_run(worker, doubler) -> None:
    running, cancelled, kept = worker.submit(10), worker.submit(7), worker.submit(8)
    assert cancelled.cancel()
    doubler.go.set()
    assert results([running, kept]) == [20, 16]
    assert 7 not in [item for batch in doubler.batches for item in batch]


def test_a_dead_worker_fails_what_it_has_and_what_comes(worker, doubler) -> None:
    futures = [worker.submit(item) for item in (99, 5, 6)]
    doubler.go.set()
    for future in futures:
        with pytest.raises(EngineDeadError, match="doubler died: SystemExit: killed"):
            future.result(20)
    with pytest.raises(EngineDeadError):
        worker.submit(1)
    assert worker.is_dead


def test_a_stuck_batch_is_a_fault(worker) -> None:
    worker.submit(1)
    while not worker.fault:
        threading.Event().wait(0.01)
    assert "doubler has work but finished no step" in worker.fault


def test_a_stall_fails_what_runs_and_waits_and_a_thread_that_goes_on_works_again(worker, doubler) -> None:
    futures = [worker.submit(item) for item in (9, 8, 7)]
    while not worker.fault:
        threading.Event().wait(0.01)
    worker.relieve()
    for future in futures:
        with pytest.raises(EngineDeadError, match="finished no step"):
            future.result(20)
    with pytest.raises(EngineDeadError, match="finished no step"):
        worker.submit(1)
    doubler.go.set()
    while worker.fault:
        threading.Event().wait(0.01)
    assert results([worker.submit(3)]) == [6]


def test_closing_fails_what_waits(doubler) -> None:
    worker = BatchWorker("doubler", doubler, lambda item: item, 10, Patience(60.0, 60.0))
    waiting = worker.submit(1)
    worker.start()
    late = worker.submit(10)
    doubler.go.set()
    worker.close()
    for future in (waiting, late):
        assert future.exception(20) is None or "was stopped" in str(future.exception())
    assert worker.is_dead


def test_a_thread_warms_up_on_itself_before_it_takes_work_and_start_tells_what_went_wrong() -> None:
    ran_on: list[str] = []
    worker: BatchWorker[int, int] = BatchWorker("w", lambda items: items, lambda item: 1, 4, Patience(60, 60))
    worker.start(lambda: ran_on.append(threading.current_thread().name))
    assert ran_on == ["w"]
    assert worker.submit(3).result(20) == 3
    worker.close()

    def broken() -> None:
        raise MachineError("no kernel")

    other: BatchWorker[int, int] = BatchWorker("o", lambda items: items, lambda item: 1, 4, Patience(60, 60))
    with pytest.raises(MachineError, match="no kernel"):
        other.start(broken)
    other.close()
    assert other.is_dead
