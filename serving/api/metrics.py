"""Prometheus metrics of one application, in a registry of its own.

Names, units and label are vLLM's with another prefix where they mean the same, so that its dashboards need one
replacement.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.api.disconnect import close
from serving.api.errors import http_error
from serving.protocol import FinishedEvent, GenerateEvent, TokenEvent

PREFIX = "pocketvlm:"
_LABEL = ["model_name"]
_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKEN_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class EngineGauges(Collector):
    """The engine's momentary values, as its health told them last.

    Attributes:
        values: By model and by name without the prefix; replaced before each scrape.
    """

    def __init__(self) -> None:
        self.values: Mapping[str, Mapping[str, float]] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield one gauge per name, a value for each model that has it."""
        for name in sorted({name for gauges in self.values.values() for name in gauges}):
            gauge = GaugeMetricFamily(PREFIX + name, f"The engine's {name.replace('_', ' ')}.", labels=_LABEL)
            for model, gauges in self.values.items():
                if name in gauges:
                    gauge.add_metric([model], gauges[name])
            yield gauge


class Metrics:
    """What one application counts. Labels take served models' names only, never what a caller invents.

    Attributes:
        registry: Of this application alone.
        gauges: Of the engine behind it.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.gauges = EngineGauges()
        self.registry.register(self.gauges)
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From the parsed request to its first token."
        )
        self._between = self._histogram("inter_token_latency_seconds", "Between two tokens.", _TOKEN_LATENCY_S)
        self._total = self._histogram("e2e_request_latency_seconds", "From the parsed request to its last event.")
        self._queue = self._histogram("request_queue_time_seconds", "Spent waiting for a slot.")
        self._vision = self._histogram("vision_encode_time_seconds", "Spent encoding the request's images.")
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts and texts, images' included.")
        self._generated = self._counter("generation_tokens", "Tokens generated.")
        self._success = self._counter("request_success", "Requests that ended well.", "finished_reason")
        self._errors = self._counter("request_errors", "Requests that failed.", "error_type")

    def exposition(self) -> bytes:
        """Return the text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def count_error(self, error: BaseException, model: str) -> None:
        """Count a failed request; `model` is empty where none was found."""
        self._errors.labels(model, http_error(error).code).inc()

    @contextmanager
    def one_answer(self, model: str) -> Iterator[None]:
        """Time a request that is answered in one piece, and count it if it ends well."""
        started_s = time.perf_counter()
        yield
        self._total.labels(model).observe(time.perf_counter() - started_s)
        self._success.labels(model, "stop").inc()

    def count_prompt(self, model: str, tokens: int) -> None:
        """Count tokens that went in."""
        self._prompt.labels(model).inc(tokens)

    async def observed(self, events: AsyncIterator[GenerateEvent], model: str) -> AsyncIterator[GenerateEvent]:
        """Yield the events as they come, timing them; closing this closes them."""
        started_s = time.perf_counter()
        last_s: float | None = None
        try:
            async for event in events:
                if isinstance(event, FinishedEvent):
                    self._finish(event, model, time.perf_counter() - started_s)
                elif isinstance(event, TokenEvent) and event.token_ids:
                    if last_s is None:
                        self._first_token.labels(model).observe(time.perf_counter() - started_s)
                    else:
                        self._between.labels(model).observe(event.sampled_s - last_s)
                    last_s = event.sampled_s
                yield event
        finally:
            await close(events)

    def count_abort(self, model: str) -> None:
        """Count a request whose client went away."""
        self._success.labels(model, "abort").inc()

    def _finish(self, event: FinishedEvent, model: str, total_s: float) -> None:
        self._total.labels(model).observe(total_s)
        self._queue.labels(model).observe(event.timings.queue_s)
        self._vision.labels(model).observe(event.timings.vision_s)
        self._prompt.labels(model).inc(event.usage.prompt_tokens)
        self._generated.labels(model).inc(event.usage.completion_tokens)
        self._success.labels(model, event.reason).inc()

    def _histogram(self, name: str, text: str, buckets_s: tuple[float, ...] = _LATENCY_S) -> Histogram:
        return Histogram(PREFIX + name, text, _LABEL, buckets=buckets_s, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, [*_LABEL, *labels], registry=self.registry)
