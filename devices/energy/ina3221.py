"""INA3221: the power monitors of Jetson boards, three rails each, through sysfs.

    /sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in1_label     VDD_IN          JetPack 5 and later, as
                                                     in1_input     5008   mV       Linux' own driver tells it
                                                     curr1_input   968    mA       (Documentation/hwmon/ina3221.rst)
    /sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_0   POM_5V_IN       JetPack 4
                                                     in_power0_input  2532  mW

VDD_IN (POM_5V_IN on the first Nano) is what the whole module takes; boards without such a rail tell several, which are
added up. Input 7 is the sum of shunt voltages, "NC" a channel that nothing is connected to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from devices.energy.meter import Meter, MeterError, PowerIntegral

I2C_DRIVERS = Path("/sys/bus/i2c/drivers")
WHOLE_BOARD = ("VDD_IN", "POM_5V_IN", "VIN")
"""Rails that feed all others of their module."""
_PERIOD_S = 0.1
_MOST_CHANNEL = 3


@dataclass(frozen=True)
class Rail:
    """One channel of a monitor.

    Attributes:
        name: As the board calls it.
        folder: Of its files.
        channel: 1 to 3; of the older driver from 0.
        is_older: It is of JetPack 4's driver.
    """

    name: str
    folder: Path
    channel: int
    is_older: bool = False

    def watts(self) -> float:
        """Return the power that the rail takes now.

        Raises:
            MeterError: It cannot be read.
        """
        if self.is_older:
            return _number(self.folder / f"in_power{self.channel}_input") / 1e3
        millivolts = _number(self.folder / f"in{self.channel}_input")
        return millivolts * _number(self.folder / f"curr{self.channel}_input") / 1e6


class Ina3221:
    """The rail of the whole board, or all rails of one that has none."""

    covers = "board"
    period_s = _PERIOD_S

    def __init__(self, rails: list[Rail]) -> None:
        self.name = "INA3221 " + " + ".join(rail.name for rail in rails)
        self._rails = rails
        self._integral = PowerIntegral(lambda: sum(rail.watts() for rail in self._rails))

    def joules(self) -> float:
        """Return the energy since construction."""
        return self._integral.joules()

    def close(self) -> None:
        """Nothing is held."""


def find_ina3221(drivers: Path = I2C_DRIVERS) -> Meter | str:
    """Return the meter, or why there is none."""
    rails = sorted(find_rails(drivers), key=lambda rail: (str(rail.folder), rail.channel))
    if not rails:
        return f"no INA3221: {drivers} has no ina3221 with a labelled rail"
    whole = [rail for rail in rails if rail.name in WHOLE_BOARD]
    try:
        return Ina3221(whole[:1] or rails)
    except MeterError as error:
        return f"INA3221 is there and cannot be read: {error}"


def find_rails(drivers: Path = I2C_DRIVERS) -> Iterator[Rail]:
    """Yield every rail that something is connected to."""
    for label in drivers.glob("ina3221/*/hwmon/hwmon*/in*_label"):
        channel = int(label.name.removeprefix("in").removesuffix("_label"))
        if channel <= _MOST_CHANNEL and (name := _label(label)):
            yield Rail(name, label.parent, channel)
    for label in drivers.glob("ina3221x/*/iio:device*/rail_name_*"):
        if name := _label(label):
            yield Rail(name, label.parent, int(label.name.removeprefix("rail_name_")), is_older=True)


def _label(path: Path) -> str:
    """Return a rail's name; empty where nothing is connected."""
    try:
        name = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
    return "" if name == "NC" else name


def _number(path: Path) -> float:
    try:
        return float(path.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError) as error:
        raise MeterError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
