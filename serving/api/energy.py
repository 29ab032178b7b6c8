"""The machine's energy on the metrics page, where a meter tells it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from devices.energy.account import EnergyAccount
from serving.api.metric_table import PREFIX


class EnergyMetrics(Collector):
    """An account's entries as counters.

    Without a meter there is no counter, for 0 J would be a claim; `energy_meters` says that there is none.

    Args:
        account: Read at each scrape.
    """

    def __init__(self, account: EnergyAccount) -> None:
        self._account = account

    def collect(self) -> Iterator[Metric]:
        """Yield how many meters there are, and what each has told since the server began."""
        entries = self._account.entries()
        yield GaugeMetricFamily(PREFIX + "energy_meters", "Meters of energy that can be read here.", len(entries))
        joules = CounterMetricFamily(
            PREFIX + "energy_joules", "Energy since the server began, idling included.", labels=["meter", "covers"]
        )
        for entry in entries:
            joules.add_metric([entry.name, entry.covers], entry.joules)
        if entries:
            yield joules
