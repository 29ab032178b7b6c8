"""Metrics of several ingress replicas as one exposition."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serving.cluster.exposition import joined


def exposition(requests: int, running: float) -> str:
    registry = CollectorRegistry()
    Counter("a:requests", "Requests.", ["model_name"], registry=registry).labels("m").inc(requests)
    Gauge("a:running", "Running.", ["model_name"], registry=registry).labels("m").set(running)
    Histogram("a:seconds", "Seconds.", ["model_name"], buckets=[1], registry=registry).labels("m").observe(0.5)
    return generate_latest(registry).decode()


def samples(text: bytes, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name == name
    }


def test_what_replicas_count_stays_apart_and_what_engines_tell_is_told_once() -> None:
    text = joined({"x": exposition(2, 5), "y": exposition(3, 5)})
    assert samples(text, "a:requests_total") == {("m", "x"): 2, ("m", "y"): 3}
    assert samples(text, "a:running") == {("m",): 5}
    assert samples(text, "a:seconds_bucket") == {
        ("1.0", "m", "x"): 1,
        ("+Inf", "m", "x"): 1,
        ("1.0", "m", "y"): 1,
        ("+Inf", "m", "y"): 1,
    }
    assert text.count(b"# TYPE a:requests_total counter") == 1


def test_a_metric_that_only_one_replica_has_is_there() -> None:
    assert samples(joined({"x": "", "y": exposition(1, 0)}), "a:requests_total") == {("m", "y"): 1}


def of_engines(hits: int, rss_bytes: float) -> str:
    registry = CollectorRegistry()
    Counter("a:hits", "Hits.", ["model_name", "engine"], registry=registry).labels("m", "e1").inc(hits)
    Gauge("process_resident_memory_bytes", "Bytes.", registry=registry).set(rss_bytes)
    return generate_latest(registry).decode()


def test_what_an_engine_counts_is_told_once_and_never_falls_behind() -> None:
    for first, second in ((7, 9), (9, 7)):
        assert samples(joined({"x": of_engines(first, 1), "y": of_engines(second, 1)}), "a:hits_total") == {
            ("e1", "m"): 9
        }


def test_each_process_tells_of_itself() -> None:
    text = joined({"x": of_engines(1, 100), "y": of_engines(1, 200)})
    assert samples(text, "process_resident_memory_bytes") == {("x",): 100, ("y",): 200}
