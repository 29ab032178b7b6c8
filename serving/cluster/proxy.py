"""What Ray's HTTP proxies do beyond passing requests on: an end in the API's form for what an ingress left open.

Ray calls `middlewares` in each proxy (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH). An ingress marks its answers; an
answer without the mark is Ray's own, plain text for what happened to the ingress or on the way there.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bundle.errors import DeadlineError, EngineDeadError, PocketVLMError
from serving.api.errors import cut_stream_end, error_response
from serving.api.record import REQUEST_ID
from serving.cluster.call import Outlook
from serving.cluster.watch import watch_of

logger = logging.getLogger("ray.serve")

INGRESS = "ingress"
"""The deployment that answers HTTP."""
MARK = "x-pocketvlm-answer"
"""The header by which an ingress tells its answers from Ray's; it goes no further than the proxy."""
_OWN_PATHS = "/-/"
"""Of Ray's proxies themselves: /-/healthz and /-/routes."""
_OF_EVENT = b"\ndata: "
"""Once in each event with a name."""
_TRIES = 2
_REPLAY_BYTES = 1 << 20
"""Of a body, kept so that it can be sent to another ingress. A larger one is sent once."""
_PATIENCE_S = 15.0
_RETRY_AFTER_S = 1
"""What a client is told to wait: another ingress answers, as a rule."""
_NO_ANSWER = "the process that had this request is gone; send it again"


def middlewares() -> list[Middleware]:
    """Return what Ray puts around each of its proxies."""
    return [Middleware(OwnForm)]


class OwnForm:
    """Sends a request that an ingress lost to another, and ends in an error of the API's what stays without answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"].startswith(_OWN_PATHS):
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        name = headers.setdefault(REQUEST_ID, uuid.uuid4().hex)
        body = _Body(receive)
        error: PocketVLMError | None = None
        for _ in range(_TRIES):
            body.rewind()
            answer = _Answer(send)
            error = await self._try(scope, body, answer)
            if error is None or body.is_abandoned:
                return
            if answer.is_begun:
                await answer.end(error, scope["path"])
                return
            if not (isinstance(error, EngineDeadError) and body.can_rewind):
                break
        error = error or EngineDeadError(_NO_ANSWER)
        response = error_response(error, _RETRY_AFTER_S, scope["path"])
        response.headers[REQUEST_ID] = name
        await response(scope, receive, send)

    async def _try(self, scope: Scope, body: _Body, answer: _Answer) -> PocketVLMError | None:
        """Return what is to be told of one try, None where it was answered to the end."""
        outlook = Outlook(watch_of(INGRESS), _PATIENCE_S)
        own_scope = {**scope, "headers": list(scope["headers"])}
        serving = outlook.send(lambda: asyncio.ensure_future(self._app(own_scope, body.receive, answer.send)))
        try:
            await outlook.until_done(serving)
        except EngineDeadError as error:
            return error
        finally:
            answer.is_closed = True
        failure = serving.exception()
        if failure is not None:
            logger.error("a request failed in the proxy", exc_info=failure)
        return answer.failure()


class _Body:
    """A request's body, of which the beginning can be read again."""

    def __init__(self, receive: Receive) -> None:
        self.is_abandoned = False
        self._receive = receive
        self._kept: list[Message] = []
        self._num_bytes = 0
        self._next = 0

    async def receive(self) -> Message:
        """Return the next message: one read before, or the client's."""
        if self._next < len(self._kept):
            self._next += 1
            return self._kept[self._next - 1]
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_abandoned = True
            return message
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes <= _REPLAY_BYTES:
            self._kept.append(message)
            self._next += 1
        else:
            self._kept.clear()
            self._next = 0
        return message

    @property
    def can_rewind(self) -> bool:
        """Whether all that was read of it is kept."""
        return self._num_bytes <= _REPLAY_BYTES

    def rewind(self) -> None:
        """Go back to the beginning."""
        self._next = 0


class _Answer:
    """An answer on its way through the proxy. One of Ray's own is held back.

    Attributes:
        is_begun: The client has its head.
        is_closed: Nothing of it goes to the client any more.
    """

    def __init__(self, send: Send) -> None:
        self.is_begun = False
        self.is_closed = False
        self._send = send
        self._is_ended = False
        self._is_stream = False
        self._num_events = 0
        self._status_of_ray: int | None = None

    async def send(self, message: Message) -> None:
        """Pass a message on, or take down what Ray would have answered."""
        if self.is_closed or self._status_of_ray is not None:
            return
        if message["type"] == "http.response.start" and not self._begin(message):
            self._status_of_ray = message["status"]
            return
        if self._is_stream:
            self._num_events += message.get("body", b"").count(_OF_EVENT)
        self._is_ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    def failure(self) -> PocketVLMError | None:
        """Return what is to be told in the API's form, None of an answer that came to its end."""
        if self._is_ended:
            return None
        if self._status_of_ray == HTTPStatus.NOT_FOUND:
            return EngineDeadError("no application is deployed here, or not yet. Ask /health/ready before sending any.")
        if self._status_of_ray == HTTPStatus.REQUEST_TIMEOUT:
            return DeadlineError("the request took longer than its x-request-timeout-seconds allows")
        return EngineDeadError(_NO_ANSWER)

    async def end(self, error: PocketVLMError, path: str) -> None:
        """End a stream that was cut as the API of its path has it; another answer is cut, as its length tells."""
        if self._is_stream:
            events = cut_stream_end(error, path, self._num_events)
            await self._send({"type": "http.response.body", "body": events, "more_body": False})

    def _begin(self, message: Message) -> bool:
        """Return whether this is the head of an ingress' answer, whose mark it takes away."""
        headers = MutableHeaders(scope=message)
        if MARK not in headers:
            return False
        del headers[MARK]
        self.is_begun = True
        self._is_stream = headers.get("content-type", "").startswith("text/event-stream")
        return True
