"""How much of the machine this process may use."""

from __future__ import annotations

import math
from pathlib import Path

_CPU_MAX = Path(
    "/sys/fs/cgroup/cpu.max"
)  # cgroup v2, as a container sees its own: "QUOTA PERIOD" in us, or "max PERIOD"


def num_granted_cores(cpu_max: Path = _CPU_MAX) -> int | None:
    """Return the cores that a container's CPU limit grants, rounded up; None without a limit.

    More threads than that are halted for part of every period, and the operators that wait for them with them.
    """
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
    except (OSError, ValueError):  # no cgroup v2, or not the form that we know: no limit that we can read
        return None
    return None if quota == "max" else max(math.ceil(int(quota) / int(period)), 1)
