"""The outermost layer: every request ends in one answer of the API's own form, whatever ends it."""

from __future__ import annotations

import asyncio
import logging

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bundle.errors import EngineDeadError
from serving.api.errors import error_response
from serving.api.record import RequestRecord
from serving.api.service import Service

logger = logging.getLogger(__name__)


class OneAnswer:
    """Answers what the application left unanswered: a fault that nobody expected, or the end of the server.

    Args:
        app: May raise anything, cancellation and a library's own BaseException among it.
        service: Counts the fault.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record: RequestRecord = scope["state"]["record"]

        is_begun = False

        async def watched(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except BaseException as error:
            response = self._told(error, record, scope["path"])
            if not is_begun:
                await response(scope, receive, send)

    def _told(self, error: BaseException, record: RequestRecord, path: str) -> Response:
        """Return the answer for a fault, once it is counted and in the log."""
        if isinstance(error, asyncio.CancelledError):
            # Only the end of the server cancels a request from outside; nothing runs on that could want to know.
            error = EngineDeadError("the server is stopping, and this request with it. Send it again.")
            logger.warning("request %s was cut: the server stops", record.name)
        else:
            logger.error("request %s failed: %s", record.name, type(error).__name__, exc_info=error)
        self._service.metrics.count_error(error, record.model)
        return error_response(error, self._service.settings.retry_after_s, path)
