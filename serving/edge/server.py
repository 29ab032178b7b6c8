"""uvicorn as the edge server runs it: few enough connections, each watched, and an end that every client is told of."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn

from serving.api.app import create_app
from serving.edge.connection import Connection, ConnectionWatch
from serving.edge.machine import MachineWatch
from serving.edge.stopping import Stop
from serving.listener import BACKLOG_CONNECTIONS
from serving.protocol import ManagedClient
from serving.settings import ServerSettings
from serving.tls import Certificate
from serving.tracing import Tracer

logger = logging.getLogger(__name__)

_ACCEPTED_AT_ONCE = 16
"""Between two looks at how many there are."""
_RESERVED_DESCRIPTORS = 64
"""For models, pools, the log, and connections that were accepted and not yet counted."""
_CLOSE_TIMEOUT_S = 10.0
"""For an engine to stop; one that hangs is left behind."""
_ANSWER_TIMEOUT_S = 3.0
"""For answers to reach their clients once the engine is closed."""


class EdgeServer(uvicorn.Server):
    """Serves the application over a client, without signal handlers of its own.

    Args:
        client: Closed by `end`.
        settings: Of the server.
        tracer: Makes a span of every request; None: there are none.

    Attributes:
        watch: Of the connections; swept by whoever runs the server.
        certificate: None where connections are not encrypted; refreshed by whoever runs the server.

    Raises:
        SettingsError: The certificate, its key or the file of keys is unusable.
    """

    def __init__(self, client: ManagedClient, settings: ServerSettings, tracer: Tracer | None = None) -> None:
        self._machine = MachineWatch()
        self.watch = ConnectionWatch(connection_limit(settings.http.max_connections))
        self.certificate = Certificate.of(settings.http)
        self._head_timeout_s = settings.http.head_timeout_s
        self._client = client
        self._drain_timeout_s = settings.drain_timeout_s
        connection: Any = partial(Connection, settings.http, settings.api.stalled_client_s, self.watch)
        super().__init__(
            uvicorn.Config(
                create_app(
                    client,
                    settings.api,
                    client.clear_caches if settings.http.allow_cache_clear else None,
                    self._machine.collectors,
                    client,
                    tracer,
                ),
                http=connection,
                h11_max_incomplete_event_size=settings.http.max_head_bytes,
                timeout_keep_alive=settings.http.idle_timeout_s,
                backlog=_ACCEPTED_AT_ONCE,
                log_config=None,
                log_level=settings.log_level,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none: uvicorn would raise each again before the engine is closed."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup([])
        self._machine.start()
        for each in sockets or ():
            self.servers.append(await self._served(each))
            each.listen(BACKLOG_CONNECTIONS)  # asyncio has set it to the number that it accepts at once

    async def _served(self, listener: socket.socket) -> asyncio.Server:
        """Return a server of a listener; unlike uvicorn's, it waits no longer for a handshake than for a head."""
        protocol: Any = self.config.http_protocol_class
        make = partial(protocol, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        encrypted: dict[str, Any] = {}
        if self.certificate is not None:
            encrypted = {"ssl": self.certificate.context, "ssl_handshake_timeout": self._head_timeout_s}
        loop = asyncio.get_running_loop()
        return await loop.create_server(make, sock=listener, backlog=_ACCEPTED_AT_ONCE, **encrypted)

    async def drain(self, serving: asyncio.Task[None], stop: Stop) -> None:
        """Take no more requests, and wait for those under way: until the drain's end, or a signal that insists.

        Args:
            serving: The server's own task.
            stop: What signals said.
        """
        self.should_exit = True
        insisted = asyncio.create_task(stop.is_insisted.wait())
        await asyncio.wait((serving, insisted), timeout=self._drain_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        insisted.cancel()

    async def end(self, serving: asyncio.Task[None], starting: asyncio.Task[None]) -> None:
        """Close the client, so that each request that is left fails and its caller is told; then end what is left.

        Args:
            serving: The server's own task.
            starting: The client's start.
        """
        requests = set(self.server_state.tasks)
        if requests:
            logger.warning("%d requests are ended: the server stops", len(requests))
        starting.cancel()
        await _wait({starting}, _CLOSE_TIMEOUT_S, "loading models")
        closing = asyncio.create_task(self._client.close())
        await _wait({closing}, _CLOSE_TIMEOUT_S, "closing the engine")
        if requests:
            await asyncio.wait(requests, timeout=_ANSWER_TIMEOUT_S)
        for task in self.server_state.tasks:
            task.cancel()
        if self.server_state.tasks:
            await asyncio.wait(set(self.server_state.tasks), timeout=_ANSWER_TIMEOUT_S)
        self._machine.close()
        self.force_exit = True
        self.watch.close()
        await _wait({serving}, _ANSWER_TIMEOUT_S, "closing connections")
        if closing.done():
            closing.result()


async def _wait(tasks: set[asyncio.Task[Any]], timeout_s: float, work: str) -> None:
    """Wait for tasks; those that take too long are told and left behind."""
    _, left = await asyncio.wait(tasks, timeout=timeout_s)
    if left:
        logger.error("%s takes more than %.0f s; it is left behind", work, timeout_s)


def connection_limit(wanted: int) -> int:
    """Return how many connections may be open: those wanted, or those for which there are descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    free = soft - _num_open_descriptors()
    limit = max(1, min(wanted, free - min(_RESERVED_DESCRIPTORS, free // 3)))
    if limit < wanted:
        logger.warning("%d connections may be open, and not %d: ulimit -n is %d", limit, wanted, soft)
    return limit


def _num_open_descriptors() -> int:
    folder = "/proc/self/fd"
    return len(os.listdir(folder)) if os.path.isdir(folder) else _RESERVED_DESCRIPTORS
