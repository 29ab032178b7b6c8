"""The machine under the edge server, watched while it serves: energy, heat, power mode."""

from __future__ import annotations

from prometheus_client.registry import Collector

from devices.energy.account import EnergyAccount
from devices.heat import HeatWatch
from devices.power_mode import power_mode
from serving.api.energy import EnergyMetrics
from serving.api.heat import HeatMetrics


class MachineWatch:
    """What is read of the machine, from `start` to `close`.

    Attributes:
        collectors: Of what it tells the metrics page.
    """

    def __init__(self) -> None:
        self._account = EnergyAccount()
        self._heat = HeatWatch()
        self.collectors: tuple[Collector, ...] = (
            EnergyMetrics(self._account),
            HeatMetrics(lambda: self._heat.heat, power_mode()),
        )

    def start(self) -> None:
        """Begin to read, each on a thread of its own where there is something to read."""
        self._account.start()
        self._heat.start()

    def close(self) -> None:
        """Read no more."""
        self._account.close()
        self._heat.close()
