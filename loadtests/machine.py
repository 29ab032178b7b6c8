"""The machine and software under a measurement, and the memory that this process needed."""

from __future__ import annotations

import os
import platform
import resource
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """Where a figure was measured.

    Attributes:
        cpu: Model name, as the kernel gives it.
        cores: Logical cores that this process may use.
        system: Kernel and architecture.
        versions: Of Python and the packages asked for.
    """

    cpu: str
    cores: int
    system: str
    versions: dict[str, str]


def this_machine(packages: tuple[str, ...]) -> Machine:
    """Return this machine; a package that is not installed is left out of the versions."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Machine(_cpu_name(), _usable_cores(), system, versions)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """Return the most resident memory that this process had since it began.

    Linux: VmHWM, which starts anew with each program; ru_maxrss would begin at the parent's size. Mapped weight files
    count as far as they were read.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return _kilobytes(status.read_text(encoding="ascii", errors="replace"), "VmHWM") * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _kilobytes(status: str, field: str) -> int:
    line = next(line for line in status.splitlines() if line.startswith(field + ":"))
    return int(line.split()[1])
