"""Traces of requests in OpenTelemetry's form, where they are asked for; nothing of it is imported where they are not.

One span for each request at the HTTP application, one below it at the engine, in whatever process that is, and below
that one for each station. Attributes follow the semantic conventions for HTTP and for generative AI; none holds a
prompt, an image or an answer.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from bundle.machine import own_version
from serving.protocol import (
    ClassifyRequest,
    EmbedRequest,
    FinishedEvent,
    GenerateEvent,
    GenerateRequest,
    SamplingParams,
    ScoreRequest,
    Timings,
    Usage,
)
from serving.tracing_settings import TracingSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

TRACEPARENT: ContextVar[str] = ContextVar("TRACEPARENT", default="")
"""Of the request's span, as W3C writes it, in the process that serves HTTP; empty where it is not traced."""
_EXPORT_TIMEOUT_S = 5.0
"""For one batch to be taken; who does not answer holds up a thread of its own, and nothing else."""
_NS = 1_000_000_000
_PROVIDER = "pocketvlm"
_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty")
"""Fields of `SamplingParams` that the conventions know by the same names."""

Request = TypeVar("Request", GenerateRequest, EmbedRequest, ScoreRequest, ClassifyRequest)
Result = TypeVar("Result")


def carrying(request: Request) -> Request:
    """Return a request that tells another process which trace it is part of."""
    parent = TRACEPARENT.get()
    return replace(request, traceparent=parent) if parent else request


def try_open_tracer(settings: TracingSettings) -> Tracer | None:
    """Return what makes traces, or None where nobody asked for any.

    Raises:
        ModuleNotFoundError: The extra `tracing` is not installed.
    """
    if settings.endpoint is None:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Tracer(settings, OTLPSpanExporter(settings.endpoint, timeout=_EXPORT_TIMEOUT_S))


class Tracer:
    """Makes spans and hands them to an exporter, from a thread of its own; what that does not take in time is dropped.

    Args:
        settings: How many are made, and under which name.
        exporter: Where they go.
    """

    def __init__(self, settings: TracingSettings, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._flush_timeout_s = settings.flush_timeout_s
        resource = Resource.create(
            {
                "service.name": settings.service_name,
                "service.version": own_version(),
                "host.name": socket.gethostname(),
                "process.pid": os.getpid(),
            }
        )
        sampler = ParentBased(TraceIdRatioBased(settings.sample_share))
        self._provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("pocketvlm", own_version())
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any]) -> Iterator[Span]:
        """Make the span of a request at the HTTP application; what runs in the block finds it in `TRACEPARENT`.

        Args:
            name: Of the span.
            headers: Of the request, in lower case: they may say which trace it is part of.
            attributes: Known at its beginning.
        """
        from opentelemetry.trace import SpanKind, set_span_in_context

        parent = self._propagator.extract(dict(headers))
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, dict(attributes))
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        token = TRACEPARENT.set(carrier.get("traceparent", ""))
        try:
            yield span
        finally:
            TRACEPARENT.reset(token)
            span.end()

    async def generation(
        self, request: GenerateRequest, events: AsyncGenerator[GenerateEvent, None]
    ) -> AsyncGenerator[GenerateEvent, None]:
        """Yield an engine's events, and make a span of them, with one for each station below it."""
        with self._engine_span("chat" if request.text is None else "text_completion", request) as span:
            span.set_attributes(_asked(request))
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, FinishedEvent):
                        self._finish(span, event)
                    yield event

    async def work(
        self, operation: str, request: EmbedRequest | ClassifyRequest | ScoreRequest, work: Awaitable[Result]
    ) -> Result:
        """Return what an engine's work comes to, and make a span of it."""
        with self._engine_span(operation, request) as span:
            result = await work
            span.set_attribute("gen_ai.usage.input_tokens", getattr(result, "prompt_tokens", 0))
            return result

    def fail(self, span: Span, kind: str) -> None:
        """Mark a span as failed."""
        from opentelemetry.trace import Status, StatusCode

        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR))

    def flush(self) -> None:
        """Wait for what was made to be taken, for `flush_timeout_s` at most."""
        self._within_time(self._provider.force_flush)

    def close(self) -> None:
        """Make no more, and wait likewise; what hangs is left behind."""
        self.flush()
        self._within_time(self._provider.shutdown)

    def _within_time(self, work: Any) -> None:
        thread = threading.Thread(target=work, name="traces", daemon=True)
        thread.start()
        thread.join(self._flush_timeout_s)
        if thread.is_alive():
            logger.warning("traces were not taken within %g s; they are dropped", self._flush_timeout_s)

    @contextmanager
    def _engine_span(
        self, operation: str, request: GenerateRequest | EmbedRequest | ScoreRequest | ClassifyRequest
    ) -> Iterator[Span]:
        """Make the span of an engine's work; a failure is told by its kind, for its words may hold the caller's."""
        from opentelemetry.trace import SpanKind

        parent = self._propagator.extract({"traceparent": request.traceparent or TRACEPARENT.get()})
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.request.model": request.model,
            "gen_ai.response.model": request.model,
            "gen_ai.response.id": request.request_id,
        }
        span = self._tracer.start_span(f"{operation} {request.model}", parent, SpanKind.INTERNAL, attributes)
        try:
            yield span
        except GeneratorExit:
            span.set_attribute("pocketvlm.cancelled", True)
            raise
        except BaseException as error:
            self.fail(span, type(error).__name__)
            raise
        finally:
            span.end()

    def _finish(self, span: Span, event: FinishedEvent) -> None:
        span.set_attributes(_answered(event))
        if span.is_recording():
            self._add_stations(span, event.timings, event.usage)

    def _add_stations(self, span: Span, timings: Timings, usage: Usage) -> None:
        """Make a span for each station. The engine measured how long each took, and in which order they are passed."""
        from opentelemetry.trace import set_span_in_context

        context, end_ns = set_span_in_context(span), time.time_ns()
        for name, start_s, length_s, attributes in _stations(timings, usage):
            start_ns = end_ns - round((timings.total_s - start_s) * _NS)
            station = self._tracer.start_span(name, context, attributes=attributes, start_time=start_ns)
            station.end(start_ns + round(length_s * _NS))


def _stations(timings: Timings, usage: Usage) -> Iterator[tuple[str, float, float, dict[str, int]]]:
    """Yield each station's name, its start since arrival, its length, and what it worked on.

    Before the crossing stations follow the arrival, behind it they end with the answer.
    """
    images = {"pocketvlm.image_tokens": usage.image_tokens, "pocketvlm.image_tokens_cached": usage.cached_image_tokens}
    prompt = {"gen_ai.usage.input_tokens": usage.prompt_tokens, "pocketvlm.cached_tokens": usage.cached_tokens}
    decode_s = timings.total_s - timings.decode_s
    prefill_s = decode_s - timings.prefill_s
    yield "parse", 0.0, timings.preprocess_s, {}
    if usage.image_tokens:
        yield "vision", timings.preprocess_s, timings.vision_s, images
    yield "queue", prefill_s - timings.queue_s, timings.queue_s, {}
    yield "prefill", prefill_s, timings.prefill_s, prompt
    yield "decode", decode_s, timings.decode_s, {"gen_ai.usage.output_tokens": usage.completion_tokens}


def _asked(request: GenerateRequest) -> dict[str, Any]:
    sampling: SamplingParams = request.sampling
    wanted = {f"gen_ai.request.{name}": getattr(sampling, name) for name in _SAMPLING}
    wanted["gen_ai.request.choice.count"] = request.num_choices if request.num_choices > 1 else None
    return {name: value for name, value in wanted.items() if value is not None}


def _answered(event: FinishedEvent) -> dict[str, Any]:
    return {
        "gen_ai.response.finish_reasons": [event.reason],
        "gen_ai.response.time_to_first_chunk": event.timings.first_token_s,
        "gen_ai.usage.input_tokens": event.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": event.usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": event.usage.cached_tokens,
        "pocketvlm.image_tokens": event.usage.image_tokens,
        "pocketvlm.image_tokens_kept": event.usage.kept_image_tokens,
    }
