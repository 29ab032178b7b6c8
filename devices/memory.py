"""How much memory a process may still take here: the machine's, or its container's where that is less."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
"""cgroup v2, as a container sees its own."""


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Return what can be taken without swapping, by the kernel's own estimate; None where it does not say.

    A board whose GPU has no memory of its own (a Jetson) takes the GPU's from the same place.
    """
    known = [each for each in (_of_machine(meminfo), _of_container(cgroup)) if each is not None]
    return min(known, default=None)


def _of_machine(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _of_container(cgroup: Path) -> int | None:
    """Return what a container's limit leaves; pages of files that nobody uses are given back first."""
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        taken = int((cgroup / "memory.current").read_text(encoding="ascii"))
        stat = (cgroup / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):  # no cgroup v2
        return None
    if limit == "max":
        return None
    unused = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
    return max(int(limit) - taken + unused, 0)
