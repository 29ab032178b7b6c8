"""A process that ends when it said so, even where a thread of its own does not."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

logger = logging.getLogger(__name__)

EXIT_GRACE_S = 10.0
"""For what ends in order: pools, buffers, the interpreter."""


class LastResort:
    """Ends the process if it has not ended by itself a while after it should have."""

    def __init__(self) -> None:
        self._is_over = threading.Event()

    def arm(self, exit_code: int, grace_s: float = EXIT_GRACE_S) -> None:
        """Wait from now on for `disarm`, and after it for the end of the main thread, each for at most `grace_s`.

        Args:
            exit_code: Of the process, where it is ended from here.
            grace_s: How long either may take.
        """
        threading.Thread(target=self._wait, args=(exit_code, grace_s), name="last-resort", daemon=True).start()

    def disarm(self) -> None:
        """Note that everything was closed; what is left is the interpreter's own end, which joins threads."""
        self._is_over.set()

    def _wait(self, exit_code: int, grace_s: float) -> None:
        if self._is_over.wait(grace_s):
            threading.main_thread().join()
            time.sleep(grace_s)
        _exit(exit_code, grace_s)


def _exit(exit_code: int, grace_s: float) -> None:
    stuck = ", ".join(thread.name for thread in threading.enumerate() if not thread.daemon)
    logger.error("everything is closed, and the process has not ended for %.0f s (%s); it is ended now", grace_s, stuck)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(exit_code)
