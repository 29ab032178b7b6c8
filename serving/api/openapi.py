"""The OpenAPI document: what FastAPI finds of the routes, with the real bodies and statuses put in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.api import (
    completions,
    message_schemas,
    models,
    pooling,
    ranking,
    response_schemas,
    schemas,
    tokenize,
)
from serving.api.access import ADMIN_PATHS, open_paths
from serving.api.answers.answer import ErrorAnswer
from serving.api.answers.chat import ChatCompletion, ChatCompletionChunk
from serving.api.answers.completions import Completion, CompletionChunk, Detokenized, Tokens
from serving.api.answers.messages import CountedTokens, MessageAnswer, MessageErrorAnswer, MessageEvent
from serving.api.answers.responses import ResponseAnswer, ResponseEvent
from serving.api.answers.server import (
    Cleared,
    DeletedPrefix,
    HealthAnswer,
    ModelDescription,
    ModelList,
    Prefix,
    PrefixList,
    Unloaded,
    Version,
    Welcome,
)
from serving.api.answers.status import StatusAnswer
from serving.api.answers.vectors import ClassificationList, EmbeddingList, PoolingList, Ranking, ScoreList
from serving.api.deadline import REQUEST_TIMEOUT
from serving.api.record import REQUEST_ID
from serving.settings import ApiSettings

_REFUSALS = {
    400: "A field or an image is wrong; the message names it.",
    401: "No key came with the request, or one that is not taken.",
    403: "This needs an administrator's key.",
    404: "No served model or stored prefix has that name.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "What was sent needs an optional package that this server lacks; the message names it.",
    429: "Too much is going on; `Retry-After` says when to come again.",
    500: "A fault of the server; its log has the details.",
    503: "The model cannot answer now: it loads, stops, hangs or lacks memory.",
    504: "The request's time limit came first.",
}
_OF_KEYS = (401, 403)
_OF_CHAT = tuple(status for status in _REFUSALS if status not in _OF_KEYS)
_OF_WORK = tuple(status for status in _OF_CHAT if status != 415)
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_REF = "#/components/schemas/{model}"


@dataclass(frozen=True)
class Described:
    """What the document says of one route.

    Attributes:
        answer: Of status 200; None: plain text.
        statuses: Others that it answers with.
        request: Its body.
        event: Of a stream.
        error: Of the other statuses.
    """

    answer: type[BaseModel] | None
    statuses: tuple[int, ...] = ()
    request: type[BaseModel] | None = None
    event: type[BaseModel] | None = None
    error: type[BaseModel] = ErrorAnswer


ROUTES: dict[str, Described] = {
    "/v1/chat/completions": Described(ChatCompletion, _OF_CHAT, schemas.ChatRequest, ChatCompletionChunk),
    "/v1/completions": Described(Completion, _OF_WORK, completions.CompletionRequest, CompletionChunk),
    "/v1/responses": Described(ResponseAnswer, _OF_WORK, response_schemas.ResponsesBody, ResponseEvent),
    "/v1/messages": Described(
        MessageAnswer,
        _OF_WORK,
        message_schemas.MessagesBody,
        MessageEvent,
        MessageErrorAnswer,
    ),
    "/v1/messages/count_tokens": Described(
        CountedTokens, _OF_WORK, message_schemas.CountBody, error=MessageErrorAnswer
    ),
    "/tokenize": Described(Tokens, _OF_CHAT, tokenize.TokenizeBody),
    "/detokenize": Described(Detokenized, _OF_WORK, tokenize.DetokenizeBody),
    "/v1/embeddings": Described(EmbeddingList, _OF_WORK, schemas.EmbeddingRequest),
    "/pooling": Described(PoolingList, _OF_WORK, pooling.PoolingBody),
    "/v1/classify": Described(ClassificationList, _OF_WORK, schemas.ClassifyBody),
    "/v1/rerank": Described(Ranking, _OF_WORK, ranking.RerankBody),
    "/v1/score": Described(ScoreList, _OF_WORK, ranking.ScoreBody),
    "/v1/models": Described(ModelList),
    "/v1/models/{name}": Described(ModelDescription, (404, 503)),
    "/health/live": Described(HealthAnswer, (503,)),
    "/health/ready": Described(HealthAnswer, (503,)),
    "/version": Described(Version),
    "/v1/status": Described(StatusAnswer),
    "/metrics": Described(None),
    "/v1/prefixes": Described(Prefix, _OF_CHAT, schemas.PrefixRequest),
    "/v1/prefixes/{name}": Described(DeletedPrefix, (404, 504)),
    "/v1/cache/clear": Described(Cleared),
    "/v1/models/load": Described(ModelDescription, _OF_WORK, models.LoadBody),
    "/v1/models/unload": Described(Unloaded, _OF_WORK, models.UnloadBody),
    "/": Described(Welcome),
}
"""By path; each has one documented method, or those below. `/v1/cache/clear` and `/v1/prefixes` are there where a
setting allows them."""
OTHER_METHODS: dict[tuple[str, str], Described] = {("/v1/prefixes", "get"): Described(PrefixList, (504,))}
"""By path and method."""


def document(app: FastAPI, settings: ApiSettings) -> dict[str, Any]:
    """Return the document of an application that has its routes."""
    found = get_openapi(title=app.title, version=app.version, description=_limits(settings), routes=app.routes)
    described = {
        (path, method): OTHER_METHODS.get((path, method), ROUTES[path])
        for path, operations in found["paths"].items()
        for method in operations
    }
    schemas_of, definitions = _schemas(list(described.values()))
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            _complete(operation, described[path, method], schemas_of)
    found["components"] = {"schemas": definitions}
    if settings.access.needs_key:
        _ask_for_keys(found, described, settings, schemas_of)
    return found


def _ask_for_keys(
    found: dict[str, Any],
    described: dict[tuple[str, str], Described],
    settings: ApiSettings,
    schema_of: dict[type[BaseModel], Any],
) -> None:
    """Put into a document which routes want a key, and how it is sent."""
    found["components"]["securitySchemes"] = _SCHEMES
    for (path, method), route in described.items():
        if method == "get" and path in open_paths(settings.access):
            continue
        operation = found["paths"][path][method]
        operation["security"] = [{name: []} for name in _SCHEMES]
        for status in _OF_KEYS if path in ADMIN_PATHS else (_OF_KEYS[0],):
            content = {"application/json": {"schema": schema_of[route.error]}}
            operation["responses"][str(status)] = {"description": _REFUSALS[status], "content": content}


def _schemas(routes: Sequence[Described]) -> tuple[dict[type[BaseModel], Any], dict[str, Any]]:
    """Return a reference for every model of some routes, and the definitions that they refer to."""
    models: dict[type[BaseModel], None] = {ErrorAnswer: None, HealthAnswer: None}
    for route in routes:
        of_route = (route.answer, route.request, route.event, route.error)
        models |= dict.fromkeys(each for each in of_route if each is not None)
    references, definitions = models_json_schema([(each, "validation") for each in models], ref_template=_REF)
    return {model: references[(model, "validation")] for model in models}, definitions["$defs"]


def _complete(operation: dict[str, Any], route: Described, schema_of: dict[type[BaseModel], Any]) -> None:
    """Put bodies, headers and statuses into FastAPI's description of a route."""

    def json_of(model: type[BaseModel]) -> dict[str, Any]:
        return {"application/json": {"schema": schema_of[model]}}

    content = json_of(route.answer) if route.answer else {"text/plain": {"schema": {"type": "string"}}}
    if route.event:
        content["text/event-stream"] = {"schema": schema_of[route.event]}
    operation["responses"] = {"200": {"description": "What was asked for.", "content": content}}
    for status in route.statuses:
        is_health = route.answer is HealthAnswer
        operation["responses"][str(status)] = {
            "description": HTTPStatus(status).phrase if is_health else _REFUSALS[status],
            "content": json_of(HealthAnswer if is_health else route.error),
        }
    if route.request:
        operation["requestBody"] = {"required": True, "content": json_of(route.request)}
        operation["parameters"] = [_header(*each) for each in _HEADERS]


_HEADERS = (
    (REQUEST_TIMEOUT, {"type": "number", "exclusiveMinimum": 0}, "Seconds until the request is given up."),
    (REQUEST_ID, {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"}, "Comes back with the answer and in the log."),
)


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


def _limits(settings: ApiSettings) -> str:
    """Return this server's limits of a request, which are settings and stand in no schema."""
    limits = settings.model_dump(exclude={"aliases", "prefix_folder", "access", "remote", "recording"})
    return "Limits of this server: " + ", ".join(f"{name} {value:g}" for name, value in limits.items()) + "."
