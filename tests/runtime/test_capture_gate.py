"""Runs share the device, captures have it alone, and neither keeps the other out for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime.capture_gate import CAPTURE_GATE, CaptureGate
from runtime.graph import device_gate

WAIT_S = 20


def test_runs_are_let_through_side_by_side() -> None:
    gate, both = CaptureGate(), threading.Barrier(2, timeout=WAIT_S)

    def run() -> None:
        with gate.run():
            both.wait()  # breaks where one keeps the other out

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(run), pool.submit(run)]:
            future.result(WAIT_S)


def test_a_capture_waits_for_runs_in_flight_and_runs_wait_for_it() -> None:
    gate, order = CaptureGate(), list[str]()
    is_running, may_end = threading.Event(), threading.Event()

    def first_run() -> None:
        with gate.run():
            is_running.set()
            may_end.wait(WAIT_S)
            order.append("run ended")

    def capture() -> None:
        with gate.capture():
            order.append("captured")

    def later_run() -> None:
        with gate.run():
            order.append("later run")

    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(first_run)
        assert is_running.wait(WAIT_S)
        capturing = pool.submit(capture)
        while not gate._num_captures:
            threading.Event().wait(0.001)
        later = pool.submit(later_run)
        with pytest.raises(TimeoutError):
            later.result(0.05)  # though nothing but a run is in flight
        assert order == []
        may_end.set()
        for future in (running, capturing, later):
            future.result(WAIT_S)
    assert order == ["run ended", "captured", "later run"]


def test_captures_and_runs_of_many_threads_never_meet() -> None:
    gate, inside, met = CaptureGate(), list[str](), list[tuple[str, ...]]()

    def work(kind: str) -> None:
        for _ in range(200):
            with gate.capture() if kind == "capture" else gate.run():
                inside.append(kind)
                seen = tuple(inside)
                if "capture" in seen and len(seen) > 1:
                    met.append(seen)
                inside.remove(kind)

    with ThreadPoolExecutor(5) as pool:
        for future in [pool.submit(work, kind) for kind in ("run", "run", "run", "capture", "capture")]:
            future.result(WAIT_S)
    assert not met


def test_what_fails_inside_lets_the_next_one_in() -> None:
    gate = CaptureGate()
    for enter in (gate.run, gate.capture):
        with pytest.raises(ZeroDivisionError), enter():
            raise ZeroDivisionError
    with gate.capture():
        pass
    with gate.run():
        pass


def test_a_device_is_entered_by_the_gate_and_the_host_is_not() -> None:
    with CAPTURE_GATE.capture(), device_gate("cpu"), device_gate("cpu", captures=True):
        pass  # would wait for itself
    with device_gate("cuda", captures=True):
        assert CAPTURE_GATE._is_capturing
    with device_gate("cuda"):
        assert CAPTURE_GATE._num_runs == 1
    assert (CAPTURE_GATE._is_capturing, CAPTURE_GATE._num_runs) == (False, 0)
