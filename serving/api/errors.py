"""One table from error classes to HTTP, and the OpenAI error body.

Every failure leaves the application in the same form: `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bundle import errors
from bundle.errors import PocketVLMError, RequestError

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
    errors.ModelNotFoundError: HttpError(404, _INVALID, "model_not_found"),
    errors.TaskError: HttpError(400, _INVALID, "unsupported_task"),
    errors.RequestError: HttpError(400, _INVALID, "invalid_request"),
    errors.OverloadedError: HttpError(429, "overloaded_error", "overloaded"),
    errors.DeadlineError: HttpError(504, "timeout_error", "deadline_exceeded"),
    errors.OutOfMemoryError: HttpError(503, "unavailable_error", "out_of_memory"),
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

_TYPE_OF_STATUS = {404: "not_found", 405: "method_not_allowed"}


def http_error(error: BaseException) -> HttpError:
    """Return how an error looks over HTTP."""
    return next((HTTP_ERRORS[kind] for kind in type(error).__mro__ if kind in HTTP_ERRORS), UNEXPECTED)


def error_body(error: BaseException) -> dict[str, Any]:
    """Return the OpenAI error body of an error; one that was not raised on purpose keeps its text to itself."""
    looks = http_error(error)
    message = str(error) if isinstance(error, PocketVLMError) else "internal error; the server's log has the details"
    param = error.param if isinstance(error, RequestError) else None
    return body(message, looks.type, param, looks.code)


def body(message: str, kind: str, param: str | None, code: str) -> dict[str, Any]:
    """Return an OpenAI error body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def routing_body(status: int, detail: str) -> dict[str, Any]:
    """Return the body for a path or method that has no route."""
    return body(detail, _INVALID, None, _TYPE_OF_STATUS.get(status, "http_error"))
