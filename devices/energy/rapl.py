"""RAPL: the energy counters of x86 processors, through Linux' powercap (Documentation/power/powercap/powercap.rst).

    intel-rapl:0/name                   package-0
    intel-rapl:0/energy_uj              microjoules, from 0 to max_energy_range_uj and round again
    intel-rapl:0/max_energy_range_uj    262143328850
    intel-rapl:0:0/name                 core, uncore (within a package) or dram (beside it)

AMD's processors are told in the same place. Since Linux 5.10 `energy_uj` is for root alone (CVE-2020-8694).
"""

from __future__ import annotations

from pathlib import Path

from devices.energy.meter import Counted, Meter, MeterError

POWERCAP = Path("/sys/class/powercap")
_PERIOD_S = 30.0
"""A package of 500 W goes once round in 8 minutes."""
_BESIDE_PACKAGES = "dram"


class Rapl:
    """All packages of this machine, and their memory where it is counted."""

    covers = "processor"
    period_s = _PERIOD_S

    def __init__(self, zones: list[Path]) -> None:
        self.name = "RAPL " + " + ".join(_read(zone / "name") for zone in zones)
        self._counters = [
            Counted(
                lambda zone=zone: int(_read(zone / "energy_uj")),  # type: ignore[misc]
                1e-6,
                int(_read(zone / "max_energy_range_uj")),
            )
            for zone in zones
        ]

    def joules(self) -> float:
        """Return the energy since construction."""
        return sum(counter.joules() for counter in self._counters)

    def close(self) -> None:
        """Nothing is held."""


def find_rapl(powercap: Path = POWERCAP) -> Meter | str:
    """Return the meter, or why there is none."""
    zones = sorted(zone for zone in powercap.glob("intel-rapl:*") if _counts(zone))
    if not zones:
        return f"no RAPL: {powercap} holds no intel-rapl"
    try:
        return Rapl(zones)
    except MeterError as error:
        return f"RAPL is there and not for this user: {error}. As root: chmod o+r {powercap}/intel-rapl:*/energy_uj"


def _counts(zone: Path) -> bool:
    """Return whether a zone's energy is within no other's: a package's own, or memory's beside it."""
    try:
        name = _read(zone / "name")
    except MeterError:
        return False
    return name.startswith("package") or (name == _BESIDE_PACKAGES and zone.name.count(":") > 1)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise MeterError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
