"""The metrics of all ingress replicas as one: a scrape reaches any of them, and each counts its own requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "ingress"


def joined(expositions: Mapping[str, str]) -> bytes:
    """Return expositions as one, in Prometheus' text format.

    What each replica counts gets a label with its id, so that one that is replaced ends a series instead of setting it
    back. Gauges are the engines', which all tell alike: the first replica's stand.

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
        families: dict[str, Metric] = {}
        for replica, text in self._expositions.items():
            for family in text_string_to_metric_families(text):
                known = families.get(family.name)
                if family.type == "gauge":
                    families.setdefault(family.name, family)
                    continue
                if known is None:
                    known = families[family.name] = Metric(family.name, family.documentation, family.type)
                for sample in family.samples:
                    known.samples.append(sample._replace(labels={**sample.labels, LABEL: replica}))
        yield from families.values()
