"""Traces: what spans there are, whose trace they are part of, and that nothing waits for whoever takes them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from bundle.errors import SettingsError
from serving.api.app import create_app
from serving.api.traced import Traced
from serving.fake import FakeClient
from serving.listener import open_listener, url_of
from serving.models.client import LocalClient
from serving.settings import ApiSettings, EngineSettings
from serving.settings_sources import load_settings
from serving.tracing import Tracer, try_open_tracer
from serving.tracing_settings import TracingSettings

CHAT = "/v1/chat/completions"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
STATIONS = ["parse", "vision", "queue", "prefill", "decode"]
SETTINGS = EngineSettings(max_sequences=2, intra_threads=1)


def chat(text: str, image: str | None = None, **fields: Any) -> dict[str, Any]:
    parts = [] if image is None else [{"type": "image_url", "image_url": {"url": image}}]
    content = [*parts, {"type": "text", "text": text}]
    return {"model": "tiny-smolvlm", "messages": [{"role": "user", "content": content}], "max_tokens": 5, **fields}


async def post(client: Any, tracer: Tracer | None, path: str, body: Any, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(create_app(client, ApiSettings(), tracer=tracer), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.post(path, json=body, headers=headers)


@pytest.fixture(scope="module")
def traced(smolvlm_bundle: Path, clip_bundle: Path, image_bytes: Any) -> dict[str, list[ReadableSpan]]:
    """The finished spans of a few requests to real engines, by what was asked."""
    import base64

    image = "data:image/png;base64," + base64.b64encode(image_bytes(1)).decode()
    asked = {
        "chat": (CHAT, chat("heliotrope", image, temperature=0.5, seed=3)),
        "stream": (CHAT, chat("heliotrope", stream=True)),
        "too long": (CHAT, chat("heliotrope " * 600)),
        "embeddings": ("/v1/embeddings", {"model": "tiny-clip", "input": "heliotrope"}),
    }
    found = {}

    async def main() -> None:
        exporter = InMemorySpanExporter()
        tracer = Tracer(TracingSettings(), exporter)
        async with LocalClient([smolvlm_bundle, clip_bundle], SETTINGS, tracer) as client:
            for name, (path, body) in asked.items():
                await post(client, tracer, path, body, traceparent=TRACEPARENT, **{"x-request-id": "job-7"})
                await asyncio.to_thread(tracer.flush)
                found[name] = [*exporter.get_finished_spans()]
                exporter.clear()
        tracer.close()

    asyncio.run(asyncio.wait_for(main(), 120))
    return found


def by_name(spans: list[ReadableSpan]) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans}


def test_a_request_s_spans_hang_below_the_caller_s(traced: Any) -> None:
    spans = by_name(traced["chat"])
    assert set(spans) == {f"POST {CHAT}", "chat tiny-smolvlm", *STATIONS}
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    server, engine = spans[f"POST {CHAT}"], spans["chat tiny-smolvlm"]
    assert (server.kind, f"{server.parent.span_id:016x}") == (SpanKind.SERVER, PARENT)
    assert engine.parent.span_id == server.context.span_id
    assert {spans[name].parent.span_id for name in STATIONS} == {engine.context.span_id}


def test_stations_follow_each_other_within_the_engine_s_span(traced: Any) -> None:
    spans = by_name(traced["chat"])
    engine, stations = spans["chat tiny-smolvlm"], [spans[name] for name in STATIONS]
    assert all(span.start_time < span.end_time for span in stations)
    rounding_ns = 1000
    for before, after in pairwise(stations):
        assert before.end_time <= after.start_time + rounding_ns
    clocks_ns = 50_000_000  # one span is by the wall clock, its stations by the engine's own stopwatch
    assert engine.start_time - clocks_ns <= stations[0].start_time
    assert stations[-1].end_time <= engine.end_time + clocks_ns


def test_attributes_are_those_of_the_conventions(traced: Any) -> None:
    spans = by_name(traced["chat"])
    engine = dict(spans["chat tiny-smolvlm"].attributes)
    assert engine["gen_ai.operation.name"] == "chat"
    assert engine["gen_ai.request.model"] == engine["gen_ai.response.model"] == "tiny-smolvlm"
    assert engine["gen_ai.request.max_tokens"] == engine["gen_ai.usage.output_tokens"] == 5
    assert (engine["gen_ai.request.temperature"], engine["gen_ai.request.seed"]) == (0.5, 3)
    assert engine["gen_ai.response.finish_reasons"] == ("length",)
    assert 0 < engine["pocketvlm.image_tokens"] < engine["gen_ai.usage.input_tokens"]
    server = dict(spans[f"POST {CHAT}"].attributes)
    assert (server["http.request.method"], server["http.route"]) == ("POST", CHAT)
    assert (server["http.response.status_code"], server["pocketvlm.request_id"]) == (200, "job-7")
    assert server["gen_ai.response.id"] == engine["gen_ai.response.id"]
    assert spans["vision"].attributes["pocketvlm.image_tokens"] == engine["pocketvlm.image_tokens"]
    resource = spans["decode"].resource.attributes
    assert (resource["service.name"], resource["service.version"]) == ("pocketvlm", "0.1.0")


def test_nothing_that_was_asked_or_answered_is_in_a_trace(traced: Any) -> None:
    for spans in traced.values():
        assert spans
        for span in spans:
            assert "heliotrope" not in span.to_json()
            assert "base64" not in span.to_json()


def test_a_text_alone_has_no_vision(traced: Any) -> None:
    assert set(by_name(traced["stream"])) == {f"POST {CHAT}", "chat tiny-smolvlm", *STATIONS} - {"vision"}


def test_a_failure_is_told_by_its_kind(traced: Any) -> None:
    spans = by_name(traced["too long"])
    assert set(spans) == {f"POST {CHAT}", "chat tiny-smolvlm"}
    engine = spans["chat tiny-smolvlm"]
    assert engine.status.status_code is StatusCode.ERROR
    assert engine.attributes["error.type"] == "ContextLengthError"
    server = spans[f"POST {CHAT}"]
    assert server.attributes["http.response.status_code"] == 400
    assert server.status.status_code is StatusCode.UNSET  # a caller's mistake is no fault of the server's


def test_embeddings_are_traced(traced: Any) -> None:
    spans = by_name(traced["embeddings"])
    assert spans["embeddings tiny-clip"].parent.span_id == spans["POST /v1/embeddings"].context.span_id
    assert spans["embeddings tiny-clip"].attributes["gen_ai.usage.input_tokens"] > 0


@pytest.mark.parametrize(
    ("share", "header", "num_spans"),
    [
        (0.0, "", 0),
        (0.0, TRACEPARENT, 1),
        (1.0, f"00-{TRACE}-{PARENT}-00", 0),
        (1.0, "no traceparent at all", 1),
    ],
)
def test_the_caller_decides_and_the_share_where_it_does_not(share: float, header: str, num_spans: int) -> None:
    exporter = InMemorySpanExporter()
    tracer = Tracer(TracingSettings(sample_share=share), exporter)
    body = {"model": "fake-vlm", "messages": [{"role": "user", "content": "a"}]}
    headers = {"traceparent": header} if header else {}
    assert asyncio.run(post(FakeClient(), tracer, CHAT, body, **headers)).status_code == 200
    tracer.close()
    assert len(exporter.get_finished_spans()) == num_spans


def test_probes_and_unknown_paths_make_no_names() -> None:
    exporter = InMemorySpanExporter()
    tracer = Tracer(TracingSettings(), exporter)

    async def main() -> None:
        app = create_app(FakeClient(), ApiSettings(), tracer=tracer)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            for path in ("/health/ready", "/metrics", "/invented/7"):
                await http.get(path)

    asyncio.run(main())
    tracer.close()
    assert [span.name for span in exporter.get_finished_spans()] == ["GET"]


@contextmanager
def receiver(*, answers: bool = True) -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """Take OTLP over HTTP; yields the URL and what came."""
    taken: list[ExportTraceServiceRequest] = []
    is_over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not answers:
                is_over.wait()
                return
            assert self.path == "/v1/traces"
            assert self.headers["Content-Type"] == "application/x-protobuf"
            taken.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", taken
        is_over.set()
        server.shutdown()
        thread.join()


def test_spans_reach_whoever_takes_otlp_over_http() -> None:
    body = {"model": "fake-vlm", "messages": [{"role": "user", "content": "a"}]}
    with receiver() as (url, taken):
        tracer = try_open_tracer(load_settings(environment={"POCKETVLM_TRACING__ENDPOINT": url}).tracing)
        assert tracer is not None
        asyncio.run(post(FakeClient(), tracer, CHAT, body, traceparent=TRACEPARENT))
        tracer.close()
    (resource,) = [each for request in taken for each in request.resource_spans]
    named = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert named["service.name"] == "pocketvlm"
    (span,) = [span for scope in resource.scope_spans for span in scope.spans]
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == (f"POST {CHAT}", TRACE, PARENT)


def test_whoever_does_not_answer_holds_up_neither_requests_nor_the_end() -> None:
    body = {"model": "fake-vlm", "messages": [{"role": "user", "content": "a"}]}
    generous_s = 20.0
    with receiver(answers=False) as (url, _), open_listener("127.0.0.1", 0) as silent:
        for endpoint in (url, f"{url_of(silent)}/v1/traces", "http://127.0.0.1:1/v1/traces"):
            tracer = try_open_tracer(TracingSettings(endpoint=endpoint, flush_timeout_s=0.2))
            started_s = time.monotonic()
            for _ in range(3):
                assert asyncio.run(post(FakeClient(), tracer, CHAT, body)).status_code == 200
            assert tracer is not None
            tracer.close()
            assert time.monotonic() - started_s < generous_s


def test_without_traces_there_is_no_layer_for_them_and_nothing_is_imported() -> None:
    app = create_app(FakeClient(), ApiSettings())
    assert Traced not in {layer.cls for layer in app.user_middleware}
    assert try_open_tracer(TracingSettings()) is None
    program = (
        "import sys, serving.edge.serve, serving.api.app, serving.models.client\n"
        # FastAPI looks for the interface, which does nothing, by itself.
        "print([m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://collector", "http://"])
def test_an_endpoint_that_is_none_is_named(endpoint: str) -> None:
    with pytest.raises(SettingsError, match="is no URL of HTTP; write such as http://collector:4318/v1/traces"):
        load_settings(flags={"tracing.endpoint": endpoint})
