"""Real servers on free ports, each in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving.edge.server import EdgeServer
from serving.listener import open_listener, url_of
from serving.settings import ServerSettings


@contextmanager
def edge_server(client: Any, settings: ServerSettings, send_buffer_bytes: int | None = None) -> Iterator[str]:
    """Serve a client on a free port from another thread while the block lasts; yields the URL."""
    listener = open_listener("127.0.0.1", 0)
    if send_buffer_bytes:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    server = EdgeServer(client, settings)
    url = url_of(listener)

    async def sweep() -> None:
        while True:
            server.watch.sweep()
            await asyncio.sleep(0.05)

    async def serve() -> None:
        sweeping = asyncio.create_task(sweep())
        await server.serve(sockets=[listener])
        sweeping.cancel()
        server.watch.close()
        while server.server_state.tasks:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield url
    server.should_exit = server.force_exit = True
    thread.join()
