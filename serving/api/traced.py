"""A span for each request at the HTTP application; only where traces are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api.record import QUIET_PATHS, RequestRecord
from serving.tracing import Tracer

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_SERVER_FAULT = 500


class Traced:
    """Makes a span of every request but those of probes and scrapers.

    Args:
        app: Serves the requests, each with its record.
        tracer: Makes the spans.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"].startswith(QUIET_PATHS):
            await self._app(scope, receive, send)
            return
        record: RequestRecord = scope["state"]["record"]
        begun = {"http.request.method": scope["method"], "pocketvlm.request_id": record.name}
        # The path is the caller's own word: only that of a route becomes part of a name.
        with self._tracer.request(scope["method"], Headers(scope=scope), begun) as span:
            try:
                await self._app(scope, receive, send)
            finally:
                _describe(span, scope, record)
                if record.status >= _SERVER_FAULT:
                    self._tracer.fail(span, str(record.status))


def _describe(span: Span, scope: Scope, record: RequestRecord) -> None:
    if route := getattr(scope.get("route"), "path", ""):
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", record.status)
    if record.model:
        span.set_attribute("gen_ai.request.model", record.model)
    if record.answer:
        span.set_attribute("gen_ai.response.id", record.answer)
