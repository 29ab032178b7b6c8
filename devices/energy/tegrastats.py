"""tegrastats: NVIDIA's own line of a Jetson's state, for boards whose power monitors sysfs does not show.

    11-26-2026 10:00:01 RAM 2568/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) CPU [2%@1510,0%@1510] GR3D_FREQ 0%
    cpu@49.687C soc2@48.25C gpu@48.5C tj@49.687C VDD_IN 4828mW/4790mW VDD_CPU_GPU_CV 1020mW/995mW VDD_SOC 1461mW/1461mW

A rail is followed by its power now and its mean since the start, in milliwatts; JetPack 4 leaves out the "mW"
(NVIDIA Jetson Linux Developer Guide, "tegrastats Utility").
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from devices.energy.ina3221 import WHOLE_BOARD
from devices.energy.meter import Meter, MeterError, PowerIntegral

COMMAND = "tegrastats"
_INTERVAL_MS = 200
_FIRST_LINE_S = 3.0
_END_S = 5.0
_STALE_S = 5.0
"""A line that is older tells nothing of now."""
_RAIL = re.compile(r"\b([A-Z][A-Z0-9]*_[A-Z0-9_]+) (\d+)(?:mW)?/(\d+)(?:mW)?(?= |$)")
_NO_RAILS = frozenset({"GR3D_FREQ", "EMC_FREQ"})


def rails_of(line: str) -> dict[str, float]:
    """Return the power of each rail that a line of tegrastats tells, in watts."""
    return {name: int(now) / 1e3 for name, now, _ in _RAIL.findall(line) if name not in _NO_RAILS}


def board_watts(line: str) -> tuple[str, float] | None:
    """Return what a line tells of the whole board: the names of the rails counted, and watts; None where nothing."""
    rails = rails_of(line)
    if not rails:
        return None
    whole = next((name for name in WHOLE_BOARD if name in rails), None)
    return (whole, rails[whole]) if whole else (" + ".join(rails), sum(rails.values()))


class Tegrastats:
    """Lines of a running tegrastats.

    Args:
        lines: Read on a thread of their own until they end.
        end: Ends them.

    Raises:
        MeterError: No line came that tells a rail's power.
    """

    covers = "board"
    period_s = _INTERVAL_MS / 1e3

    def __init__(self, lines: Iterable[str], end: Callable[[], object] = lambda: None) -> None:
        self._told: tuple[str, float, float] | None = None
        self._has_told = threading.Event()
        self._end = end
        self._reading = threading.Thread(target=self._read, args=(lines,), name="tegrastats", daemon=True)
        self._reading.start()
        if not self._has_told.wait(_FIRST_LINE_S) or self._told is None:
            self.close()
            raise MeterError(f"{COMMAND} told no rail's power within {_FIRST_LINE_S:g} s")
        self.name = f"{COMMAND} {self._told[0]}"
        self._integral: PowerIntegral = PowerIntegral(self._watts)

    def joules(self) -> float:
        """Return the energy since construction."""
        return self._integral.joules()

    def close(self) -> None:
        """End the lines."""
        self._end()
        self._reading.join(_END_S)

    def _read(self, lines: Iterable[str]) -> None:
        for line in lines:
            if (found := board_watts(line)) is not None:
                self._told = (*found, time.monotonic())
                self._has_told.set()
        self._has_told.set()

    def _watts(self) -> float:
        if self._told is None or time.monotonic() - self._told[2] > _STALE_S:
            raise MeterError(f"{COMMAND} has told nothing for {_STALE_S:g} s")
        return self._told[1]


def find_tegrastats(command: str = COMMAND) -> Meter | str:
    """Return the meter, or why there is none."""
    path = shutil.which(command)
    if path is None:
        return f"no {command} on PATH"
    process = subprocess.Popen([path, "--interval", str(_INTERVAL_MS)], stdout=subprocess.PIPE, text=True)

    def end() -> None:
        process.kill()
        process.wait()

    try:
        return Tegrastats(_lines(process), end)
    except MeterError as error:
        return str(error)


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield the lines of a process until it ends."""
    if process.stdout is not None:
        with process.stdout:
            yield from process.stdout
