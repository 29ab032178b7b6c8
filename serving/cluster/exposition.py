"""The metrics of all ingress replicas as one: a scrape reaches any of them, and each counts its own requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from serving.api.metric_table import ENGINE

LABEL = "ingress"
_OF_PROCESS = "process_"
"""How Prometheus' clients begin the names of what a process tells of itself."""


def joined(expositions: Mapping[str, str]) -> bytes:
    """Return expositions as one, in Prometheus' text format.

    What each replica counts gets a label with its id, so that one that is replaced ends a series instead of setting it
    back; so does what each process tells of itself. What engines tell, all ingress replicas pass on alike, some a
    second later than others: of a gauge, the first one's value stands, of a count the highest.

    Args:
        expositions: Of each replica, by its id.
    """
    registry = CollectorRegistry()
    registry.register(_Joined(expositions))
    return generate_latest(registry)


class _Joined(Collector):
    def __init__(self, expositions: Mapping[str, str]) -> None:
        self._expositions = expositions

    def collect(self) -> Iterator[Metric]:
        """Yield each metric once, with the samples of all."""
        families: dict[str, _Family] = {}
        for replica, text in self._expositions.items():
            for family in text_string_to_metric_families(text):
                known = families.setdefault(family.name, _Family(family))
                known.add(replica, family)
        for each in families.values():
            yield each.metric()


class _Family:
    """One metric as it is gathered.

    Args:
        first: As the first replica that has it tells it.
    """

    def __init__(self, first: Metric) -> None:
        self._first = first
        self._samples: dict[tuple[str, frozenset[tuple[str, str]]], Sample] = {}

    def add(self, replica: str, family: Metric) -> None:
        """Take in what a replica tells of it."""
        for sample in family.samples:
            if not self._is_told_by_all(sample):
                sample = sample._replace(labels={**sample.labels, LABEL: replica})
            key = sample.name, frozenset(sample.labels.items())
            known = self._samples.get(key)
            if known is None or (family.type == "counter" and known.value < sample.value):
                self._samples[key] = sample

    def metric(self) -> Metric:
        """Return it, with the samples of all."""
        metric = Metric(self._first.name, self._first.documentation, self._first.type)
        metric.samples = list(self._samples.values())
        return metric

    def _is_told_by_all(self, sample: Sample) -> bool:
        return ENGINE in sample.labels or (self._first.type == "gauge" and not sample.name.startswith(_OF_PROCESS))
