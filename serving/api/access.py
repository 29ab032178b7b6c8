"""The door: which requests need a key, whose, and what a key has left. Nothing of a body is read before it."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bundle.errors import AccessError, AdminKeyError
from serving.access.keyring import Keyring
from serving.access.keys import ApiKey
from serving.access.settings import ANY_ORIGIN, AccessSettings
from serving.api.credentials import key_of
from serving.api.errors import error_response
from serving.api.record import REQUEST_ID, RequestRecord
from serving.api.service import Service

_OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/health", "/health/live", "/health/ready"})
"""What is told to whoever reaches the port: nothing of requests, answers or load. Asked by GET and HEAD alone."""
_PAGE = "/page/"
"""What the page is made of: files that everybody may have, and nothing else."""
ADMIN_PATHS = frozenset({"/v1/cache/clear", "/v1/models/load", "/v1/models/unload"})
"""What changes a server for everybody."""
_METRICS = "/metrics"
_READING = ("GET", "HEAD")
_LIMIT_HEADERS = [
    f"x-ratelimit-{kind}-{noun}" for kind in ("limit", "remaining", "reset") for noun in ("requests", "tokens")
]
_PREFLIGHT_S = 600


def open_paths(access: AccessSettings) -> frozenset[str]:
    """Return which paths are read without a key."""
    return _OPEN_PATHS | {_METRICS} if access.open_metrics else _OPEN_PATHS


class KeyAsked:
    """Asks every request for a key, but for those of open paths, and holds each key to its limits.

    Args:
        app: Serves the requests that are let in.
        service: Counts the others.
        keyring: Of the server.
    """

    def __init__(self, app: ASGIApp, service: Service, keyring: Keyring) -> None:
        self._app = app
        self._service = service
        self._keyring = keyring
        self._open = open_paths(service.settings.access)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or tell why it is not."""
        if scope["type"] != "http" or self._is_open(scope):
            await self._app(scope, receive, send)
            return
        record: RequestRecord = scope["state"]["record"]
        headers: dict[str, str] = {}

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        try:
            key = self._keyring.match(key_of(scope))
            record.key = key.name
            self._let_in(scope, record, key, headers)
        except AccessError as error:
            self._service.metrics.count_error(error, "")
            response = error_response(error, self._service.settings.retry_after_s, scope["path"])
            await response(scope, receive, send_with_limits)
        else:
            await self._app(scope, receive, send_with_limits)

    def _is_open(self, scope: Scope) -> bool:
        path = _route_of(scope)
        return scope["method"] in _READING and (path in self._open or path.startswith(_PAGE))

    def _let_in(self, scope: Scope, record: RequestRecord, key: ApiKey, headers: dict[str, str]) -> None:
        """Count a request of a key that may make it; fill what its answer tells of the key's limits.

        Raises:
            AdminKeyError: It needs an administrator's.
            RateLimitError: The key took what it may.
        """
        if (path := _route_of(scope)) in ADMIN_PATHS and not key.admin:
            raise AdminKeyError(f"{path} needs an administrator's key; {key.name} is none")
        if scope["method"] in _READING:  # lists and counters cost nothing
            return
        limits = self._keyring.limits_of(key)
        try:
            record.until_end.enter_context(limits.running())
            record.charge = limits.charge
        finally:
            headers |= limits.headers


def _route_of(scope: Scope) -> str:
    """Return the path as routes are found by it: without the prefix that a proxy says the application stands under."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def cors_options(access: AccessSettings) -> dict[str, Any]:
    """Return how pages of other origins may ask: with a key, never with cookies."""
    return {
        "allow_origins": [ANY_ORIGIN] if ANY_ORIGIN in access.cors_origins else list(access.cors_origins),
        "allow_methods": ["GET", "POST", "DELETE"],
        "allow_headers": ["*"],  # OpenAI's client in a browser sends a dozen of its own
        "expose_headers": [REQUEST_ID, "Retry-After", *_LIMIT_HEADERS],
        "max_age": _PREFLIGHT_S,
    }
