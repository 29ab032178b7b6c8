"""What `/metrics` counts: names, labels, and how many series a caller can make."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from bundle.errors import OverloadedError
from serving.api.metric_table import METRICS, PREFIX, table
from serving.api.metrics import Metrics
from serving.fake import FAKE_VLM, FakeClient
from serving.protocol import FinishedEvent, GenerateEvent, Health, Timings, TokenEvent, Usage

CHAT = "/v1/chat/completions"


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in families(text).values()
        for sample in family.samples
    }


def told_by(health: Health) -> str:
    metrics = Metrics()
    metrics.tell(health, (FAKE_VLM,))
    return metrics.exposition().decode()


def test_every_metric_is_in_the_table_with_its_kind_and_labels(
    api: Any, ask: Callable[..., Any], engine: FakeClient, png: bytes, image_part: Any
) -> None:
    api.post(CHAT, ask([image_part(png), {"type": "text", "text": "a b"}]))
    engine.behaviour.failure = OverloadedError("full")
    api.post(CHAT, ask())
    table = {PREFIX + spec.name: spec for spec in METRICS}
    found = {name: each for name, each in families(api.get("/metrics").text).items() if name.startswith(PREFIX)}
    assert set(found) <= set(table)
    for name, family in found.items():
        assert family.type == table[name].kind, name
        told = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        assert told == {frozenset(table[name].labels)}, name


def test_what_only_engines_tell_is_in_the_table_too() -> None:
    names = {spec.name for spec in METRICS}
    text = told_by(Health(is_ready=True, model_gauges={"m": dict.fromkeys(names, 1.0)}))
    assert {PREFIX + "num_preemptions", PREFIX + "image_cache_hits"} <= set(families(text))


def test_time_between_tokens_is_that_of_each_choice_and_never_negative() -> None:
    async def events() -> AsyncIterator[GenerateEvent]:
        for index, sampled_s in [(0, 10.0), (1, 10.0), (0, 11.0), (1, 12.0), (1, 13.0), (0, 14.0), (0, 13.5)]:
            yield TokenEvent("x", (1,), sampled_s, index)
        yield FinishedEvent("stop", Usage(1, 7), Timings())

    async def read(metrics: Metrics) -> None:
        async for _ in metrics.observed(events(), "m"):
            pass

    metrics = Metrics()
    asyncio.run(read(metrics))
    found = values(metrics.exposition().decode())
    assert found[f"{PREFIX}inter_token_latency_seconds_count", ("m",)] == 5
    assert found[f"{PREFIX}inter_token_latency_seconds_sum", ("m",)] == 1 + 2 + 1 + 3
    assert found[f"{PREFIX}time_to_first_token_seconds_count", ("m",)] == 1


def test_stations_add_up_to_what_the_engine_told() -> None:
    timings = Timings(0.5, 0.25, 0.125, 1.0, 4.0, prefill_s=2.0, decode_s=3.0)

    async def events() -> AsyncIterator[GenerateEvent]:
        yield TokenEvent("x", (1,), 10.0)
        yield TokenEvent("xy", (2, 3), 13.0)
        yield FinishedEvent("stop", Usage(7, 4, image_tokens=6, kept_image_tokens=3, cached_tokens=5), timings)

    async def read(metrics: Metrics) -> None:
        async for _ in metrics.observed(events(), "m"):
            pass

    metrics = Metrics()
    asyncio.run(read(metrics))
    found = values(metrics.exposition().decode())
    sums = {
        "request_queue_time_seconds": 0.5,
        "request_parse_time_seconds": 0.25,
        "vision_encode_time_seconds": 0.125,
        "request_prefill_time_seconds": 2.0,
        "request_decode_time_seconds": 3.0,
        "request_inference_time_seconds": 5.0,
        "request_time_per_output_token_seconds": 1.0,
        "request_prompt_tokens": 7.0,
        "request_generation_tokens": 4.0,
    }
    assert {name: found[f"{PREFIX}{name}_sum", ("m",)] for name in sums} == sums
    counts = {"prompt_tokens": 7, "prompt_tokens_cached": 5, "image_tokens": 6, "image_tokens_kept": 3}
    assert {name: found[f"{PREFIX}{name}_total", ("m",)] for name in counts} == counts
    assert found[f"{PREFIX}generation_tokens_total", ("m",)] == 3  # as they come, the uncounted fourth had no event


def test_tokens_of_a_long_answer_are_counted_before_its_end() -> None:
    async def events() -> AsyncIterator[GenerateEvent]:
        yield TokenEvent("x", (1,), 10.0)

    async def read_one(metrics: Metrics) -> None:
        observed = metrics.observed(events(), "m")
        await anext(observed)

    metrics = Metrics()
    asyncio.run(read_one(metrics))
    assert values(metrics.exposition().decode())[f"{PREFIX}generation_tokens_total", ("m",)] == 1


def test_refusals_are_counted_as_such_and_by_their_code(api: Any, engine: FakeClient, ask: Callable[..., Any]) -> None:
    engine.behaviour.failure = OverloadedError("full")
    api.post(CHAT, ask())
    found = values(api.get("/metrics").text)
    assert found[f"{PREFIX}admission_rejections_total", ("fake-vlm",)] == 1
    assert found[f"{PREFIX}request_errors_total", ("fake-vlm", "overloaded")] == 1


def test_counts_begin_at_zero_so_that_no_rate_misses_the_first_error(api: Any) -> None:
    found = values(api.get("/metrics").text)
    assert found[f"{PREFIX}request_errors_total", ("engine_dead", "fake-vlm")] == 0
    assert found[f"{PREFIX}request_success_total", ("fake-vlm", "stop")] == 0
    assert found[f"{PREFIX}generation_tokens_total", ("fake-vlm",)] == 0


def test_callers_cannot_make_series(api: Any, ask: Callable[..., Any]) -> None:
    def num_series() -> int:
        return len(values(api.get("/metrics").text))

    def trouble(place: int) -> None:
        api.post(CHAT, ask(model=f"invented-{place}"), headers={"X-Request-ID": f"job-{place}"})
        api.post(CHAT, ask(**{f"field_{place}": 1}))
        api.get(f"/invented/{place}")
        api.post(CHAT, ask(f"word-{place}", user=f"user-{place}"))

    trouble(0)
    before = num_series()
    for place in range(1, 5):
        trouble(place)
    assert num_series() == before


def test_each_replica_has_a_series_of_its_own_and_the_model_a_number_of_them() -> None:
    gauges = {"num_requests_running": 2.0, "prefix_cache_hits": 30.0}
    health = Health(
        is_ready=True,
        model_gauges={"m": {"num_requests_running": 3.0, "num_replicas": 2.0}},
        replica_gauges={"m": {"a": gauges, "b": {**gauges, "num_requests_running": 1.0}}},
    )
    found = values(told_by(health))
    assert found[f"{PREFIX}num_requests_running", ("a", "m")] == 2
    assert found[f"{PREFIX}num_requests_running", ("b", "m")] == 1
    assert found[f"{PREFIX}prefix_cache_hits_total", ("a", "m")] == 30
    assert found[f"{PREFIX}num_replicas", ("m",)] == 2


def test_the_server_tells_its_models_its_version_and_whether_it_serves(api: Any, engine: FakeClient) -> None:
    assert values(api.get("/metrics").text)[f"{PREFIX}ready", ()] == 1
    engine.behaviour.health = Health(is_ready=False, reason="worker died")
    text = api.get("/metrics").text
    assert values(text)[f"{PREFIX}ready", ()] == 0
    (info,) = (s for s in families(text)[f"{PREFIX}model_info"].samples if s.labels["model_name"] == "fake-vlm")
    assert info.labels == {"model_name": "fake-vlm", "task": "image-text-to-text", "model_type": "fake", "kv_cache": ""}
    assert values(text)[f"{PREFIX}model_weight_bytes", ("fake-vlm",)] == 1_000_000
    assert values(text)["process_resident_memory_bytes", ()] > 1 << 20


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_that_was_asked_or_answered_is_in_the_metrics(api: Any, ask: Callable[..., Any], stream: bool) -> None:
    answered = api.post(CHAT, ask("heliotrope", stream=stream))
    assert "heliotrope" in answered.text
    assert "heliotrope" not in api.get("/metrics").text
    assert "heliotrope" not in json.dumps(sorted(families(api.get("/metrics").text)))


def test_the_page_s_table_is_the_code_s() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/operations.md").read_text(encoding="utf-8")
    begin, end = "<!-- metrics: python -m serving.api.metric_table -->\n", "\n<!-- end of metrics -->"
    assert page.partition(begin)[2].partition(end)[0] == table()
