"""The `pocketvlm` command: what a call of it begins with, and how it ends.

Exit codes: 0 done; 1 it could not be done (one line on stderr says why); 2 the command line is wrong;
3 a measured objective or quality gate was missed; 130 interrupted (Ctrl-C); 143 told to stop (SIGTERM), 129 left by its
terminal (SIGHUP). A server that drained after SIGTERM is done: 0.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_EXIT_OF_SIGNAL = 128
"""Added to the number of the signal that ended a process, as shells count."""


def main() -> None:
    """Run the command, and end with its exit code; signals and closed streams are seen to before anything is loaded."""
    _end_on_signals()
    _open_closed_streams()
    try:
        from commands.ending import run

        code = run()
    except KeyboardInterrupt:
        code = _EXIT_OF_SIGNAL + signal.SIGINT
    sys.exit(code)


def _end_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind the stack, so that half-written files go; first of all, for loading takes seconds.

    Without a handler of our own, the process with the number 1 of a container would not even see them. A signal that is
    ignored, as under nohup, stays so.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(_EXIT_OF_SIGNAL + number)


def _open_closed_streams() -> None:
    """Put the null device where a standard stream was closed: the next file to be opened would take its place."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (open as long as the process)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


if __name__ == "__main__":
    main()
