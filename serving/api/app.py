"""The HTTP application. It knows an `EngineClient`, and nothing of what stands behind it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from bundle.errors import PocketVLMError
from bundle.machine import own_version
from serving.access.keyring import Keyring
from serving.api.access import KeyAsked, cors_options
from serving.api.caches import caches_router
from serving.api.chat import chat_router
from serving.api.classify import classify_router
from serving.api.completions import completions_router
from serving.api.docs import add_docs
from serving.api.embeddings import embeddings_router
from serving.api.ending import OneAnswer
from serving.api.errors import error_response, routing_body
from serving.api.messages import messages_router
from serving.api.models import models_router
from serving.api.openapi import document
from serving.api.page import add_page
from serving.api.pooling import pooling_router
from serving.api.prefixes import no_prefixes_router, prefixes_router
from serving.api.ranking import ranking_router
from serving.api.record import Recorded, record_of
from serving.api.responses import responses_router
from serving.api.service import Service
from serving.api.status import status_router
from serving.api.tokenize import tokenize_router
from serving.api.traced import Traced
from serving.protocol import EngineClient, ModelControl
from serving.settings import ApiSettings
from serving.tracing import Tracer

_ROUTERS = (
    chat_router,
    completions_router,
    embeddings_router,
    classify_router,
    messages_router,
    pooling_router,
    ranking_router,
    responses_router,
    tokenize_router,
    status_router,
)
CLIENT_CLOSED = 499
"""nginx's status for a client that went away; only logs see it."""


def create_app(
    client: EngineClient,
    settings: ApiSettings,
    clear_caches: Callable[[], None] | None = None,
    collectors: Sequence[Collector] = (),
    control: ModelControl | None = None,
    tracer: Tracer | None = None,
) -> FastAPI:
    """Return the application over a client that is started and closed elsewhere.

    Args:
        client: Answers the requests.
        settings: Limits of a request.
        clear_caches: What `POST /v1/cache/clear` does; None: there is no such route.
        collectors: Whose metrics `/metrics` shows beside its own.
        control: Loads and unloads models, where a folder of bundles is set; None: nothing does.
        tracer: Makes a span of every request; None: there are none.

    Raises:
        SettingsError: The file of keys is unusable.
    """
    service = Service(client, settings, int(time.time()))
    for collector in collectors:
        service.metrics.registry.register(collector)
    # FastAPI's own pages load scripts from a content network; ours loads nothing.
    app = FastAPI(title="PocketVLM", version=own_version(), docs_url=None, redoc_url=None)
    app.state.service = service
    for router_of in _ROUTERS:
        app.include_router(router_of(service))
    store = service.prefixes
    app.include_router(no_prefixes_router() if store is None else prefixes_router(service, store))
    if clear_caches is not None:
        app.include_router(caches_router(clear_caches))
    if control is not None and settings.access.models_dir is not None:
        app.include_router(models_router(service, control, settings.access.models_dir))
    add_docs(app, service)
    add_page(app, service)
    app.openapi = partial(_documented, app, settings)  # type: ignore[method-assign]  # as FastAPI says to replace it
    _answer_failures(app, service)
    if settings.access.needs_key:
        app.add_middleware(KeyAsked, service=service, keyring=Keyring(settings.access))
    app.add_middleware(OneAnswer, service=service)
    if settings.access.cors_origins:
        app.add_middleware(CORSMiddleware, **cors_options(settings.access))
    if tracer is not None:
        app.add_middleware(Traced, tracer=tracer)
    app.add_middleware(Recorded)
    return app


def _documented(app: FastAPI, settings: ApiSettings) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = document(app, settings)
    return app.openapi_schema


def _answer_failures(app: FastAPI, service: Service) -> None:
    """Give every failure the one error body."""

    async def on_refusal(request: Request, error: Exception) -> Response:
        service.metrics.count_error(error, record_of(request).model)
        return error_response(error, service.settings.retry_after_s, request.url.path)

    async def on_routing(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        detail = f"{request.method} {request.url.path}: {getattr(error, 'detail', error)}"
        return JSONResponse(routing_body(status, detail, request.url.path), status, getattr(error, "headers", None))

    async def on_departure(request: Request, error: Exception) -> Response:
        service.metrics.count_abort(record_of(request).model)
        return Response(status_code=CLIENT_CLOSED)

    app.add_exception_handler(PocketVLMError, on_refusal)
    app.add_exception_handler(HTTPException, on_routing)
    app.add_exception_handler(ClientDisconnect, on_departure)
