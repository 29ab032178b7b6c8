"""The HTTP application. It knows an `EngineClient`, and nothing of what stands behind it."""

from __future__ import annotations

import logging
import time

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from bundle.errors import OverloadedError, PocketVLMError
from bundle.machine import own_version
from serving.api.body import REQUEST_ID, BodyLimit, RequestName
from serving.api.chat import chat_router
from serving.api.classify import classify_router
from serving.api.docs import add_docs
from serving.api.embeddings import embeddings_router
from serving.api.errors import error_body, http_error, routing_body
from serving.api.service import Service
from serving.api.status import status_router
from serving.api.validation import explain
from serving.protocol import EngineClient
from serving.settings import ApiSettings

logger = logging.getLogger(__name__)

CLIENT_CLOSED = 499
"""nginx's status for a client that went away; only logs see it."""


def create_app(client: EngineClient, settings: ApiSettings) -> FastAPI:
    """Return the application over a client that is started and closed elsewhere.

    Args:
        client: Answers the requests.
        settings: Limits of a request.
    """
    service = Service(client, settings, int(time.time()))
    # FastAPI's own pages load scripts from a content network; ours loads nothing.
    app = FastAPI(title="PocketVLM", version=own_version(), docs_url=None, redoc_url=None)
    for router in (chat_router(service), embeddings_router(service), classify_router(service), status_router(service)):
        app.include_router(router)
    add_docs(app)
    _answer_failures(app, service)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(RequestName)
    return app


def _answer_failures(app: FastAPI, service: Service) -> None:
    """Give every failure the one error body."""

    def failed(request: Request, error: Exception) -> Response:
        service.metrics.count_error(error, getattr(request.state, "model_name", ""))
        headers = {"Retry-After": str(service.settings.retry_after_s)} if isinstance(error, OverloadedError) else None
        return JSONResponse(error_body(error), http_error(error).status, headers)

    async def on_refusal(request: Request, error: Exception) -> Response:
        return failed(request, error)

    async def on_invalid(request: Request, error: Exception) -> Response:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        return failed(request, explain(problems, getattr(error, "body", None)))

    async def on_routing(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        detail = f"{request.method} {request.url.path}: {getattr(error, 'detail', error)}"
        return JSONResponse(routing_body(status, detail), status, getattr(error, "headers", None))

    async def on_departure(request: Request, error: Exception) -> Response:
        service.metrics.count_abort(getattr(request.state, "model_name", ""))
        return Response(status_code=CLIENT_CLOSED)

    async def on_unexpected(request: Request, error: Exception) -> Response:
        # The outermost layer answers here, outside the one that names requests, and hands the traceback on to the log.
        name = request.state.request_name
        logger.error("request %s failed: %s", name, type(error).__name__)
        response = failed(request, error)
        response.headers[REQUEST_ID] = name
        return response

    app.add_exception_handler(PocketVLMError, on_refusal)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_routing)
    app.add_exception_handler(ClientDisconnect, on_departure)
    app.add_exception_handler(Exception, on_unexpected)
