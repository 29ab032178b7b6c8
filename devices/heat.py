"""How hot a machine is, and whether it is held back by that or by its power supply: what Linux shows in sysfs.

    class/thermal/thermal_zone3/type     tj-thermal          temp           49687   thousandths of a degree Celsius
    class/thermal/cooling_device8/type   cpu-throttle-alert  cur_state      0       above 0: clocks are lowered now
    class/hwmon/hwmon3/name              soctherm_oc         oc1_event_cnt  12      under-voltage, over-current
    devices/system/cpu/cpu0/thermal_throttle/package_throttle_count                 of x86 processors

The alerts and soctherm_oc are a Jetson's (NVIDIA Jetson Linux Developer Guide, "Platform Power and Performance"). A fan
and a frequency governor are cooling devices as well, and at work without anything being wrong.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from devices.nvml import NvmlDevice, open_device

logger = logging.getLogger(__name__)

SYS = Path("/sys")
_PERIOD_S = 10.0
_ALERT = "-alert"
_OVER_CURRENT = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "instantaneous over-current"}
_MILLI = 1000


@dataclass(frozen=True)
class Heat:
    """One look at a machine.

    Attributes:
        celsius: By zone.
        held_back: What lowers clocks now, by the name of who says so, whether it does.
        events: Counters since the machine started, by name: they only grow.
    """

    celsius: dict[str, float]
    held_back: dict[str, bool]
    events: dict[str, int]

    @property
    def is_told(self) -> bool:
        """Whether this machine shows anything of it."""
        return bool(self.celsius or self.held_back or self.events)

    @property
    def alerts(self) -> tuple[str, ...]:
        """What lowers clocks now."""
        return tuple(name for name, is_held in self.held_back.items() if is_held)


def read_heat(sys: Path = SYS, device: NvmlDevice | None = None) -> Heat:
    """Return how it stands now.

    Args:
        sys: Where sysfs is.
        device: A GPU to ask as well.
    """
    celsius = {name: value / _MILLI for name, value in _named(sys, "class/thermal/thermal_zone*", "type", "temp")}
    held_back = {
        name: value > 0
        for name, value in _named(sys, "class/thermal/cooling_device*", "type", "cur_state")
        if name.endswith(_ALERT)
    }
    if device is not None:
        if (of_gpu := device.celsius()) is not None:
            celsius["gpu"] = float(of_gpu)
        reasons = device.throttle_reasons()
        held_back["gpu"] = bool(reasons)
    return Heat(celsius, held_back, dict(_events(sys)))


def _named(sys: Path, folders: str, name_file: str, value_file: str) -> Iterator[tuple[str, int]]:
    """Yield the name and the value of every folder that tells both; a sensor that is switched off tells none."""
    for folder in sorted(sys.glob(folders), key=lambda path: (len(path.name), path.name)):
        name, value = _text(folder / name_file), _number(folder / value_file)
        if name and value is not None:
            yield name, value


def _events(sys: Path) -> Iterator[tuple[str, int]]:
    for counter in sorted(sys.glob("class/hwmon/hwmon*/oc*_event_cnt")):
        number = _number(counter)
        if number is not None:
            key = counter.name.split("_")[0]
            yield _OVER_CURRENT.get(key, key), number
    package = _number(sys / "devices/system/cpu/cpu0/thermal_throttle/package_throttle_count")
    if package is not None:
        yield "processor too hot", package


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # EAGAIN of a sensor that is off, among others
        return None


class HeatWatch:
    """Looks every ten seconds, from `start` to `close`, and logs when clocks are lowered or an event was counted.

    Args:
        look: Returns how it stands.
    """

    def __init__(self, look: Callable[[], Heat] | None = None) -> None:
        self._device = open_device() if look is None else None
        self._look = look or (lambda: read_heat(device=self._device))
        self._last = self._look()
        self._ended = threading.Event()

    @property
    def heat(self) -> Heat:
        """How it stands now."""
        return self._look()

    def start(self) -> None:
        """Begin; nothing is begun on a machine that shows nothing."""
        if self._last.is_told:
            threading.Thread(target=self._watch, name="heat", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
        if self._device is not None:
            self._device.close()
            self._device = None

    def look_again(self) -> None:
        """Look, and log what changed since the last look."""
        now, before = self._look(), self._last
        for name in sorted(set(now.alerts) - set(before.alerts)):
            hottest = max(now.celsius.items(), key=lambda pair: pair[1], default=("nowhere", float("nan")))
            logger.warning(
                "%s: clocks are lowered, answers take longer; hottest: %s, %.1f C", name, hottest[0], hottest[1]
            )
        for name in sorted(set(before.alerts) - set(now.alerts)):
            logger.info("%s: clocks are lowered no more", name)
        for name, count in now.events.items():
            if (new := count - before.events.get(name, count)) > 0:
                logger.warning("%s: %d events since the last look, %d since the machine started", name, new, count)
        self._last = now

    def _watch(self) -> None:
        while not self._ended.wait(_PERIOD_S):
            self.look_again()
