"""A system in a process of its own, which works when it is asked and sleeps while the others do."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from bundle.errors import MachineError
from loadtests.peers.measures import Measure

CHECKOUT = Path(__file__).resolve().parents[2]
"""Whence peers' interpreters import `loadtests.peers`."""

_OPEN_TIMEOUT_S = 300.0
_RUN_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 10.0


class PeerProcess:
    """One system; use it in a `with` block.

    Args:
        name: For messages.
        command: Interpreter and module, which calls `worker.serve`.
        threads: Of every operator.
        log: Where it may print.

    Attributes:
        kinds: Of measures that it does.
        versions: Of its packages.

    Raises:
        MachineError: It could not be opened, for the reason told.
    """

    def __init__(self, name: str, command: Sequence[str], threads: int, log: Path) -> None:
        self.name = name
        self._log: IO[str] = log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment(threads),
            cwd=CHECKOUT,
        )
        try:
            ready = self._answer(_OPEN_TIMEOUT_S)
        except MachineError:
            self.close()
            raise
        self.kinds: frozenset[str] = frozenset(ready["kinds"])
        self.versions: dict[str, str] = ready["versions"]

    def run(self, measure: Measure) -> float:
        """Return the milliseconds of one run.

        Raises:
            MachineError: It failed, died, or took too long and was ended.
        """
        if self._process.stdin is None or self._process.poll() is not None:
            raise MachineError(f"{self.name} has ended with code {self._process.poll()}; see {self._log.name}")
        self._process.stdin.write(json.dumps(asdict(measure)) + "\n")
        self._process.stdin.flush()
        return float(self._answer(_RUN_TIMEOUT_S)["ms"])

    def _answer(self, timeout_s: float) -> Mapping[str, Any]:
        answers = self._process.stdout
        if answers is None or not select.select([answers], [], [], timeout_s)[0]:
            self._process.kill()
            raise MachineError(f"{self.name} gave no answer for {timeout_s:g} s and was ended; see {self._log.name}")
        line = answers.readline()
        if not line:
            self._process.wait(_STOP_TIMEOUT_S)
            raise MachineError(
                f"{self.name} ended with code {self._process.returncode} before it answered; see {self._log.name}"
            )
        told: Mapping[str, Any] = json.loads(line)
        if "error" in told:
            raise MachineError(f"{self.name}: {told['error']}; see {self._log.name}")
        return told

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def environment(threads: int) -> dict[str, str]:
    """Return the variables of a system's process: so many threads, nothing fetched, our modules to be found."""
    told = {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONPATH": str(CHECKOUT),
    }
    return {**os.environ, **told}


OWN_PYTHON = sys.executable
"""Of the environment that runs the comparison."""
