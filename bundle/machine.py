"""The machine under this process: cores, memory, caches, software. Every other module asks here."""

from __future__ import annotations

import math
import os
import platform
import resource
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_EXACT_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""cgroup v2, as a container sees its own: "QUOTA PERIOD" in us, or "max PERIOD"."""
_CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Machine:
    """Where a figure was measured.

    Attributes:
        cpu: Model name, as the kernel gives it.
        cores: Logical cores that this process may use.
        memory_bytes: Physical memory; None where the system does not say.
        cache_bytes: The largest CPU cache; weights beyond it come from memory at every token. None where unknown.
        system: Kernel and architecture.
        versions: Of Python and the packages asked for.
    """

    cpu: str
    cores: int
    memory_bytes: int | None
    cache_bytes: int | None
    system: str
    versions: dict[str, str]


def this_machine(packages: tuple[str, ...]) -> Machine:
    """Return this machine; a package that is not installed is left out of the versions."""
    found = {package: try_version(package) for package in packages}
    versions = {name: version for name, version in found.items() if version is not None}
    return Machine(
        cpu=cpu_name(),
        cores=num_usable_cores(),
        memory_bytes=memory_bytes(),
        cache_bytes=largest_cache_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions={"python": platform.python_version(), **versions},
    )


def try_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def own_version() -> str:
    """Return PocketVLM's version; "unknown" where it runs from a folder that was never installed."""
    return try_version("pocketvlm") or "unknown"


def cache_folder() -> Path:
    """Return where what can be made again is kept: $XDG_CACHE_HOME/pocketvlm, or ~/.cache/pocketvlm."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketvlm"


def cpu_name() -> str:
    """Return the CPU's model name, as the kernel gives it."""
    return _cpu_info("model name", "Model") or platform.processor() or platform.machine()


def sums_codes_exactly(info: Path = _CPU_INFO) -> bool:
    """Return whether the CPU multiplies unsigned by signed 8-bit codes without losing what overflows 16 bits.

    x86 does where it has VNNI or AMX; without them (before Ice Lake; before Zen 4) pairs of products are summed in 16
    bits and cut off there, unless a runtime takes care. Where the system does not say, no.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return not _EXACT_FLAGS.isdisjoint((_cpu_info("flags", info=info) or "").split())


def _cpu_info(*names: str, info: Path = _CPU_INFO) -> str | None:
    """Return the first value under one of these names, of the first core; None where the system has no such file."""
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in names:
                return value.strip()
    return None


def num_usable_cores() -> int:
    """Return how many logical cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_granted_cores(cpu_max: Path = _CPU_MAX) -> int | None:
    """Return the cores that a container's CPU limit grants, rounded up; None without a limit.

    More threads than that are halted for part of every period, and the operators that wait for them with them.
    """
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
    except (OSError, ValueError):  # no cgroup v2, or not the form that we know: no limit that we can read
        return None
    return None if quota == "max" else max(math.ceil(int(quota) / int(period)), 1)


def memory_bytes() -> int | None:
    """Return the physical memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def largest_cache_bytes(caches: Path = _CPU_CACHES) -> int | None:
    """Return the size of the first core's largest cache; None where the system does not say."""
    sizes = [path.read_text(encoding="ascii").strip() for path in caches.glob("index*/size")]
    return max((int(size.removesuffix("K")) * 1024 for size in sizes), default=None)


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


def resident_memory_bytes() -> int:
    """Return what of this process is in memory now, mapped weight files included; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return _kilobytes(status, "VmRSS") * 1024


def _kilobytes(status: str, field: str) -> int:
    line = next(line for line in status.splitlines() if line.startswith(field + ":"))
    return int(line.split()[1])
