"""The machine's heat on the metrics page, where it shows any: temperatures, lowered clocks, events of its supply."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from devices.heat import Heat
from devices.power_mode import PowerMode
from serving.api.metric_table import PREFIX


class HeatMetrics(Collector):
    """One look at each scrape; what a machine does not show has no sample.

    Args:
        look: Returns how it stands.
        mode: Of a Jetson; None on other machines.
    """

    def __init__(self, look: Callable[[], Heat], mode: PowerMode | None) -> None:
        self._look = look
        self._mode = mode

    def collect(self) -> Iterator[Metric]:
        """Yield temperatures, who lowers clocks, and events."""
        heat = self._look()
        celsius = GaugeMetricFamily(PREFIX + "temperature_celsius", "Of a thermal zone.", labels=["zone"])
        for zone, value in heat.celsius.items():
            celsius.add_metric([zone], value)
        held = GaugeMetricFamily(
            PREFIX + "clocks_lowered", "1 while heat or the power supply lowers clocks.", labels=["by"]
        )
        for name, is_held in heat.held_back.items():
            held.add_metric([name], float(is_held))
        events = CounterMetricFamily(
            PREFIX + "throttle_events", "Since the machine started: heat, under-voltage, over-current.", labels=["kind"]
        )
        for kind, count in heat.events.items():
            events.add_metric([kind], count)
        yield from (family for family in (celsius, held, events) if family.samples)
        if self._mode is not None:
            mode = GaugeMetricFamily(PREFIX + "power_mode", "The power mode of a Jetson, by number.", labels=["name"])
            mode.add_metric([self._mode.name], self._mode.number)
            yield mode
