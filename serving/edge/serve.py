"""The application in one process: uvicorn, and the engine beside it. For a board, a laptop, a plain container."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from serving.edge.exiting import LastResort
from serving.edge.notify import ServiceManager
from serving.edge.probes import Heartbeat, probes_answered
from serving.edge.server import EdgeServer
from serving.edge.stopping import stopping_on_signals
from serving.listener import open_listener, url_of
from serving.log import configure_logging, warn_of_strangers
from serving.models.client import LocalClient
from serving.protocol import ManagedClient
from serving.settings import ServerSettings
from serving.tracing import Tracer, try_open_tracer

logger = logging.getLogger(__name__)

INTERRUPTED = 130
"""The shell's exit code for SIGINT."""
_BEAT_S = 0.5


def serve(bundles: Sequence[Path], settings: ServerSettings, announce: Callable[[str], None] = print) -> None:
    """Serve bundles until SIGTERM or SIGINT, then let running requests end within `settings.drain_timeout_s`.

    The port answers at once; `/health/ready` turns green, and `announce` gets a line with the URL, when every model
    is loaded and warm.

    Raises:
        SettingsError: The port or the address cannot be had.
        BundleError: A bundle is refused.
        MachineError: This machine cannot run one.
        KeyboardInterrupt: SIGINT came, and everything is stopped.
    """
    configure_logging(settings)
    warn_of_strangers(settings)
    tracer, last_resort = try_open_tracer(settings.tracing), LastResort()
    try:
        with open_listener(settings.host, settings.port) as listener:
            client = LocalClient(bundles, settings.engine, tracer)
            asyncio.run(run_server(client, settings, listener, announce, last_resort.arm, tracer))
    finally:
        if tracer is not None:
            tracer.close()
        last_resort.disarm()


async def run_server(
    client: ManagedClient,
    settings: ServerSettings,
    listener: socket.socket,
    announce: Callable[[str], None],
    on_end: Callable[[int], None] = lambda exit_code: None,
    tracer: Tracer | None = None,
) -> None:
    """Serve a client until a signal comes; start it meanwhile, and close it after the last request.

    Args:
        client: Not started.
        settings: Of the server.
        listener: Listens already; closed on return.
        announce: Gets one line when requests can be served.
        on_end: Gets the process's exit code when every request has ended and only closing is left.
        tracer: Makes a span of every request; None: there are none.

    Raises:
        PocketVLMError: The client did not start.
        KeyboardInterrupt: SIGINT came, and everything is stopped.
    """
    url = url_of(listener, "https" if settings.http.tls_certificate else "http")
    server, manager = EdgeServer(client, settings, tracer), ServiceManager()
    with stopping_on_signals() as stop, _probes(settings) as heartbeat:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        starting = asyncio.create_task(client.start())
        beating = asyncio.create_task(_beat(client, server, heartbeat, manager))
        asked = asyncio.create_task(stop.is_asked.wait())
        try:
            await asyncio.wait((serving, starting, asked), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                names = ", ".join(card.name for card in await client.models())
                announce(f"PocketVLM serves {names} at {url} (how to ask: {url}/docs)")
                manager.ready()
            await asyncio.wait((serving, asked), return_when=asyncio.FIRST_COMPLETED)
        finally:
            manager.stopping()
            await server.drain(serving, stop)
            on_end(INTERRUPTED if stop.is_interrupt else 0)
            await server.end(serving, starting)
            for task in (beating, asked):
                task.cancel()
    serving.result()
    if stop.is_interrupt:
        raise KeyboardInterrupt


@contextmanager
def _probes(settings: ServerSettings) -> Iterator[Heartbeat]:
    """Answer health on a port of its own while the block lasts, where one is set; yield what the loop tells it by."""
    heartbeat, port = Heartbeat(settings.http.loop_timeout_s), settings.http.health_port
    if port is None:
        yield heartbeat
        return
    with open_listener(settings.host, port) as listener, probes_answered(listener, heartbeat.health):
        logger.info("health is answered at %s/health/live too, from a thread of its own", url_of(listener))
        yield heartbeat


async def _beat(client: ManagedClient, server: EdgeServer, heartbeat: Heartbeat, manager: ServiceManager) -> None:
    """Look after the connections, and tell that the loop runs, for ever."""
    while True:
        try:
            server.watch.sweep()
            if server.certificate is not None:
                server.certificate.refresh()
            health = await client.health()
            if health.is_alive:
                manager.alive()
            heartbeat.beat(replace(health, is_ready=False, reason="it stops") if server.should_exit else health)
        except Exception:
            logger.exception("the connections could not be looked after; the next look is in %.1f s", _BEAT_S)
        await asyncio.sleep(_BEAT_S)
