"""Prometheus metrics of one application, in a registry of its own; `serving.api.metric_table` says which there are."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bundle.machine import own_version
from serving.api.disconnect import close
from serving.api.errors import http_error
from serving.api.metric_table import ENGINE, ENGINE_METRICS, MODEL, PREFIX, REQUEST_METRICS, SERVER_METRICS, MetricSpec
from serving.protocol import ONLY_ENGINE, FinishedEvent, GenerateEvent, Health, ModelCard, Timings, TokenEvent, Usage

_TOO_MANY = 429
disable_created_metrics()  # type: ignore[no-untyped-call]  # a further series for each counter and histogram, which no dashboard asks for
_FIRST_VALUES: dict[str, Sequence[tuple[str, ...]]] = {
    "request_success": [("stop",), ("length",), ("abort",)],
    "request_errors": [("overloaded",), ("deadline_exceeded",), ("engine_dead",), ("out_of_memory",), ("internal",)],
}
"""Values of the second label that are told before anything happened: what alerts ask for."""
_KNOWN_GAUGES = {spec.name: spec for spec in ENGINE_METRICS}


class EngineState(Collector):
    """What engines, and the server itself, are at the moment of a scrape.

    Attributes:
        health: As the client told it last; replaced before each scrape.
        cards: Of the served models; likewise.
    """

    def __init__(self) -> None:
        self.health = Health(is_ready=False)
        self.cards: Sequence[ModelCard] = ()

    def collect(self) -> Iterator[Metric]:
        """Yield what is known, each metric once."""
        told = [*_told_by_engines(self.health)]
        for name in dict.fromkeys(name for name, _, _ in told):
            spec = _KNOWN_GAUGES.get(name) or MetricSpec(name, "gauge", f"The engine's {name}.", (MODEL, ENGINE))
            family = _family(spec)
            for _, labels, value in (each for each in told if each[0] == name):
                family.add_metric([labels[label] for label in spec.labels], value)
            yield family
        yield from _told_by_server(self.health, self.cards)


def _told_by_engines(health: Health) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield name, labels and value of all that engines tell: by replica where there are several, else of the one."""
    for model, summed in health.model_gauges.items():
        engines = health.replica_gauges.get(model)
        by_engine = {ONLY_ENGINE: summed} if engines is None else engines
        for engine, gauges in by_engine.items():
            for name, value in gauges.items():
                yield name, {MODEL: model, ENGINE: engine}, value
        if engines is not None and "num_replicas" in summed:
            yield "num_replicas", {MODEL: model}, summed["num_replicas"]


def _told_by_server(health: Health, cards: Sequence[ModelCard]) -> Iterator[Metric]:
    info, weights, build, ready = (_family(spec) for spec in SERVER_METRICS)
    for card in cards:
        info.add_metric([card.name, card.task, card.model_type, card.kv_cache or ""], 1.0)
        if card.parent is not None:
            continue  # what an adapter weighs is part of its model
        weights.add_metric([card.name], float(card.weight_bytes))
    build.add_metric([own_version()], 1.0)
    ready.add_metric([], float(health.is_ready))
    yield from (info, weights, build, ready)


def _family(spec: MetricSpec) -> GaugeMetricFamily | CounterMetricFamily:
    kind = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
    return kind(PREFIX + spec.name, spec.text, labels=spec.labels)


class Metrics:
    """What one application counts. Labels take served models' names only, never what a caller invents.

    Attributes:
        registry: Of this application alone.
        state: Of the engines behind it.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.state = EngineState()
        self.registry.register(self.state)
        ProcessCollector(registry=self.registry)
        self._of_requests: dict[str, Any] = {spec.name: _instrument(spec, self.registry) for spec in REQUEST_METRICS}
        self._of_models: dict[tuple[str, str], Any] = {}

    def tell(self, health: Health, cards: Sequence[ModelCard]) -> None:
        """Take in what the engines are now; counts of served models begin at 0, for a rate misses a series' first step.

        Args:
            health: As the client told it last.
            cards: Of the served models.
        """
        self.state.health, self.state.cards = health, cards
        for spec, card in product(REQUEST_METRICS, cards):
            for values in _FIRST_VALUES.get(spec.name, ((),)):
                self._of_requests[spec.name].labels(card.name, *values)

    def exposition(self) -> bytes:
        """Return the text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def count_error(self, error: BaseException, model: str) -> None:
        """Count a failed request; `model` is empty where none was found."""
        looks = http_error(error)
        self._of_requests["request_errors"].labels(model, looks.code).inc()
        if looks.status == _TOO_MANY:
            self._add("admission_rejections", model, 1)

    @contextmanager
    def one_answer(self, model: str) -> Iterator[None]:
        """Time a request that is answered in one piece, and count it if it ends well."""
        started_s = time.perf_counter()
        yield
        self._observe("e2e_request_latency_seconds", model, time.perf_counter() - started_s)
        self._of_requests["request_success"].labels(model, "stop").inc()

    def count_received(self, model: str, receive_s: float) -> None:
        """Note how long it took until a request was known."""
        self._observe("request_receive_time_seconds", model, receive_s)

    def count_prompt(self, model: str, tokens: int) -> None:
        """Count tokens that went in."""
        self._add("prompt_tokens", model, tokens)

    async def observed(self, events: AsyncIterator[GenerateEvent], model: str) -> AsyncIterator[GenerateEvent]:
        """Yield the events as they come, timing them; closing this closes them."""
        started_s = time.perf_counter()
        last_s: dict[int, float] = {}  # by choice
        # Found once: of all that is counted, only these two are counted for every token.
        between, generated = self._of("inter_token_latency_seconds", model), self._of("generation_tokens", model)
        try:
            async for event in events:
                if isinstance(event, FinishedEvent):
                    self._finish(event, model, time.perf_counter() - started_s)
                elif isinstance(event, TokenEvent) and event.token_ids:
                    if not last_s:
                        self._observe("time_to_first_token_seconds", model, time.perf_counter() - started_s)
                    if (before_s := last_s.get(event.index)) is not None:
                        # A sum that falls is a restart to Prometheus: clocks of two machines may differ
                        between.observe(max(event.sampled_s - before_s, 0.0))
                    last_s[event.index] = event.sampled_s
                    generated.inc(len(event.token_ids))
                yield event
        finally:
            await close(events)

    def count_abort(self, model: str) -> None:
        """Count a request whose client went away."""
        self._of_requests["request_success"].labels(model, "abort").inc()

    def _finish(self, event: FinishedEvent, model: str, total_s: float) -> None:
        self._observe("e2e_request_latency_seconds", model, total_s)
        self._of_requests["request_success"].labels(model, event.reason).inc()
        self._count_usage(event.usage, model)
        self._count_stations(event.timings, event.usage.completion_tokens, model)

    def _count_usage(self, usage: Usage, model: str) -> None:
        self._observe("request_prompt_tokens", model, usage.prompt_tokens)
        self._observe("request_generation_tokens", model, usage.completion_tokens)
        self._add("prompt_tokens", model, usage.prompt_tokens)
        self._add("prompt_tokens_cached", model, usage.cached_tokens)
        self._add("image_tokens", model, usage.image_tokens)
        self._add("image_tokens_kept", model, usage.kept_image_tokens)
        self._add("image_tokens_cached", model, usage.cached_image_tokens)

    def _count_stations(self, timings: Timings, num_tokens: int, model: str) -> None:
        self._observe("request_parse_time_seconds", model, timings.preprocess_s)
        self._observe("vision_encode_time_seconds", model, timings.vision_s)
        self._observe("request_queue_time_seconds", model, timings.queue_s)
        self._observe("request_prefill_time_seconds", model, timings.prefill_s)
        self._observe("request_decode_time_seconds", model, timings.decode_s)
        self._observe("request_inference_time_seconds", model, timings.prefill_s + timings.decode_s)
        if num_tokens > 1:
            each_s = timings.decode_s / (num_tokens - 1)
            self._observe("request_time_per_output_token_seconds", model, each_s)

    def _observe(self, name: str, model: str, value: float) -> None:
        self._of(name, model).observe(value)

    def _add(self, name: str, model: str, count: int) -> None:
        self._of(name, model).inc(count)

    def _of(self, name: str, model: str) -> Any:
        """Return a model's own series, found once: a request has 15, and `labels` takes as long as counting."""
        if (series := self._of_models.get((name, model))) is None:
            series = self._of_models[name, model] = self._of_requests[name].labels(model)
        return series


def _instrument(spec: MetricSpec, registry: CollectorRegistry) -> Counter | Histogram:
    if spec.kind == "histogram":
        return Histogram(PREFIX + spec.name, spec.text, spec.labels, buckets=spec.buckets, registry=registry)
    return Counter(PREFIX + spec.name, spec.text, spec.labels, registry=registry)
