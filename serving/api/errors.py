"""One table from error classes to HTTP, and the OpenAI error body.

Every failure leaves the application in the same form: `{"error": {"message", "type", "param", "code"}}`; under
`/v1/messages`, in Anthropic's: `{"type": "error", "error": {"type", "message"}}`. A stream that fails ends in an event
of its API.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from bundle import errors
from bundle.errors import PocketVLMError, RateLimitError, RequestError
from serving.api.events import DONE, data_event, named_event

_INVALID = "invalid_request_error"


@dataclass(frozen=True)
class HttpError:
    """How a class of errors looks over HTTP.

    Attributes:
        status: The status code.
        type: OpenAI's coarse kind.
        code: A word that a program can branch on.
    """

    status: int
    type: str
    code: str


HTTP_ERRORS: dict[type[PocketVLMError], HttpError] = {
    errors.ImageError: HttpError(400, _INVALID, "invalid_image"),
    errors.PromptError: HttpError(400, _INVALID, "invalid_prompt"),
    errors.ContextLengthError: HttpError(400, _INVALID, "context_length_exceeded"),
    errors.ParameterError: HttpError(400, _INVALID, "invalid_parameter"),
    errors.BodySizeError: HttpError(413, _INVALID, "body_too_large"),
    errors.SlowBodyError: HttpError(408, _INVALID, "body_timeout"),
    errors.ModelNotFoundError: HttpError(404, _INVALID, "model_not_found"),
    errors.PrefixNotFoundError: HttpError(404, _INVALID, "prefix_not_found"),
    errors.TaskError: HttpError(400, _INVALID, "unsupported_task"),
    errors.RequestError: HttpError(400, _INVALID, "invalid_request"),
    errors.KeyRefusedError: HttpError(401, _INVALID, "invalid_api_key"),
    errors.AdminKeyError: HttpError(403, "permission_error", "admin_key_required"),
    errors.RateLimitError: HttpError(429, "rate_limit_error", "rate_limit_exceeded"),
    errors.OverloadedError: HttpError(429, "overloaded_error", "overloaded"),
    errors.DeadlineError: HttpError(504, "timeout_error", "deadline_exceeded"),
    errors.OutOfMemoryError: HttpError(503, "unavailable_error", "out_of_memory"),
    errors.MissingExtraError: HttpError(415, "invalid_request_error", "not_installed"),
    errors.ModelStartingError: HttpError(503, "unavailable_error", "model_starting"),
    errors.StartingError: HttpError(503, "unavailable_error", "starting"),
    errors.EngineDeadError: HttpError(503, "unavailable_error", "engine_dead"),
    errors.MachineError: HttpError(500, "server_error", "machine"),
    errors.SettingsError: HttpError(500, "server_error", "settings"),
    errors.QuantizationError: HttpError(500, "server_error", "quantization"),
    errors.BundleFormatError: HttpError(500, "server_error", "bundle"),
    errors.BundleFileError: HttpError(500, "server_error", "bundle"),
    errors.SignatureError: HttpError(500, "server_error", "bundle"),
    errors.GoldenError: HttpError(500, "server_error", "bundle"),
    errors.GateError: HttpError(500, "server_error", "bundle"),
    errors.BundleError: HttpError(500, "server_error", "bundle"),
    errors.UnknownArchitectureError: HttpError(500, "server_error", "checkpoint"),
    errors.MissingWeightError: HttpError(500, "server_error", "checkpoint"),
    errors.SurplusWeightError: HttpError(500, "server_error", "checkpoint"),
    errors.UnsupportedConfigError: HttpError(500, "server_error", "checkpoint"),
    errors.CheckpointError: HttpError(500, "server_error", "checkpoint"),
}
"""By exact class; a class that is not here falls to its nearest ancestor."""

UNEXPECTED = HttpError(500, "server_error", "internal")
"""For what was not raised on purpose; its text stays in the log."""

_UNAVAILABLE = 503
_RETRIED = frozenset({429, _UNAVAILABLE})
"""Statuses that say when to come again."""
_NO_KEY = 401
_CLOSING = frozenset({408, 413})
"""Statuses after which the rest of a body may still be on its way: nothing more is read of that connection."""
_MESSAGES = "/v1/messages"
"""Anthropic's API; its clients read its own errors."""
_RESPONSES = "/v1/responses"
"""OpenAI's newer API, whose streams have events of their own."""
_MESSAGE_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_TYPE_OF_STATUS = {404: "not_found", 405: "method_not_allowed"}


_INTERNAL = "internal error; the server's log has the details"
_HIDDEN = {HTTP_ERRORS[errors.OutOfMemoryError]: "the server lacks memory for this now; retry after a while"}


def http_error(error: BaseException) -> HttpError:
    """Return how an error looks over HTTP."""
    if errors.is_lack_of_memory(error):
        return HTTP_ERRORS[errors.OutOfMemoryError]
    return next((HTTP_ERRORS[kind] for kind in type(error).__mro__ if kind in HTTP_ERRORS), UNEXPECTED)


def error_body(error: BaseException) -> dict[str, Any]:
    """Return the OpenAI error body of an error; one that was not raised on purpose keeps its text to itself."""
    looks = http_error(error)
    message = str(error) if isinstance(error, PocketVLMError) else _HIDDEN.get(looks, _INTERNAL)
    param = error.param if isinstance(error, RequestError) else None
    return body(message, looks.type, param, looks.code)


def message_error_body(error: BaseException) -> dict[str, Any]:
    """Return the error body of Anthropic's API."""
    return _message_body(http_error(error).status, error_body(error)["error"]["message"])


def response_error_body(error: BaseException, number: int) -> dict[str, Any]:
    """Return the event by which a stream of `/v1/responses` fails: the one of that number, from 0."""
    told = error_body(error)["error"]
    return {"type": "error", "sequence_number": number, **{name: told[name] for name in ("code", "message", "param")}}


def cut_stream_end(error: BaseException, path: str, num_events: int) -> bytes:
    """Return what ends a stream that its maker cannot end any more.

    Args:
        error: Why.
        path: Of the request: its API decides the events.
        num_events: Of the stream, so far.
    """
    if _is_of_messages(path):
        return named_event(message_error_body(error))
    if path == _RESPONSES:
        return named_event(response_error_body(error, num_events))
    return data_event(error_body(error)) + DONE


def error_response(error: BaseException, retry_after_s: int, path: str = "") -> JSONResponse:
    """Return the answer for an error.

    Args:
        error: Anything that was raised.
        path: Of the request: its API decides the body.
        retry_after_s: What a client is told to wait where the same request may be answered later.
    """
    status = http_error(error).status
    headers = _headers(error, status, retry_after_s)
    return JSONResponse(message_error_body(error) if _is_of_messages(path) else error_body(error), status, headers)


def _headers(error: BaseException, status: int, retry_after_s: int) -> dict[str, str]:
    """Return what an answer says of coming again, of the connection, and of how to name oneself."""
    if isinstance(error, RateLimitError):
        return {"Retry-After": str(max(math.ceil(error.retry_after_s), 1))}
    if status == _NO_KEY:
        return {"WWW-Authenticate": "Bearer"}
    headers = {"Retry-After": str(retry_after_s)} if status in _RETRIED else {}
    return {**headers, "Connection": "close"} if status in _CLOSING else headers


def body(message: str, kind: str, param: str | None, code: str) -> dict[str, Any]:
    """Return an OpenAI error body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _is_of_messages(path: str) -> bool:
    return path == _MESSAGES or path.startswith(f"{_MESSAGES}/")


def _message_body(status: int, message: str) -> dict[str, Any]:
    kind = _MESSAGE_TYPES.get(status, _INVALID if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def refusal_body(status: int, message: str, code: str, path: str = "") -> dict[str, Any]:
    """Return the body of what is refused before the application has it, as the API of its path has it."""
    if _is_of_messages(path):
        return _message_body(status, message)
    return body(message, "unavailable_error" if status == _UNAVAILABLE else _INVALID, None, code)


def routing_body(status: int, detail: str, path: str = "") -> dict[str, Any]:
    """Return the body for a path or method that has no route."""
    return refusal_body(status, detail, _TYPE_OF_STATUS.get(status, "http_error"), path)
