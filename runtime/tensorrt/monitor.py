"""A build, told of while it runs and ended by a signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ENDING = (signal.SIGINT, signal.SIGTERM)


class HeldSignals:
    """Signals that came while they were held: a handler that raises inside a callback of TensorRT ends the process.

    Attributes:
        number: Of the first; None: none came.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def hold(self, number: int, frame: FrameType | None) -> None:
        """Keep a signal for later."""
        self.number = self.number or number


@contextmanager
def held_signals() -> Iterator[HeldSignals]:
    """Hold Ctrl-C and SIGTERM, and hand the first on at the end; in another thread than the first none come."""
    held = HeldSignals()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    before = {number: signal.signal(number, held.hold) for number in _ENDING}
    try:
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held.number is not None:
        signal.raise_signal(held.number)


def build_monitor(module: Any, say: Callable[[str], None], held: HeldSignals) -> Any:
    """Return what TensorRT tells of its phases.

    Args:
        module: TensorRT.
        say: Told of each phase of the first level.
        held: A build ends soon after a signal came.
    """

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # its base is known when it is imported
        """Of one build."""

        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self._top: str | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """Tell of the phases of the first level."""
            self._top = phase_name if parent_phase is None else self._top
            if parent_phase is not None and parent_phase == self._top:
                say(phase_name.lower())

        def phase_finish(self, phase_name: str) -> None:
            """Tell nothing."""

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Return whether to go on."""
            return held.number is None

    return Monitor()
