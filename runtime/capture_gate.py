"""Who may use a device while something is captured: nobody but who captures.

CUDA forbids much of what a thread does (copies, memory, launches of other streams) while another thread of the process
captures, and what was captured would be spoiled. A server captures while it starts, before it serves; a second model
that is loaded beside traffic waits for the runs in flight, and they for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CaptureGate:
    """Lets any number of runs through at once, or one capture. A capture that waits goes before runs that come later.

    Neither may be entered within another one of the same thread.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_runs = 0
        self._num_captures = 0
        self._is_capturing = False

    @contextmanager
    def run(self) -> Iterator[None]:
        """Use the device for the length of the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._num_captures)
            self._num_runs += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_runs -= 1
                if not self._num_runs:
                    self._changed.notify_all()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Have the device to oneself for the length of the block."""
        with self._changed:
            self._num_captures += 1  # from now on no run begins
            self._changed.wait_for(lambda: not self._num_runs and not self._is_capturing)
            self._is_capturing = True
        try:
            yield
        finally:
            with self._changed:
                self._is_capturing = False
                self._num_captures -= 1
                self._changed.notify_all()


CAPTURE_GATE = CaptureGate()
"""Of this process. Captures are judged by process, not by device."""
