"""The application in one process: uvicorn, and the engine beside it. For a board, a laptop, a plain container."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bundle.errors import SettingsError
from serving.exiting import LastResort
from serving.models.client import LocalClient
from serving.probes import Heartbeat, probes_answered
from serving.protocol import ManagedClient
from serving.server import BACKLOG_CONNECTIONS, EdgeServer
from serving.settings import ServerSettings
from serving.stopping import stopping_on_signals

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
    last_resort = LastResort()
    try:
        with open_listener(settings.host, settings.port) as listener:
            client = LocalClient(bundles, settings.engine)
            asyncio.run(run_server(client, settings, listener, announce, last_resort.arm))
    finally:
        last_resort.disarm()


def configure_logging(settings: ServerSettings) -> None:
    """Send log lines of at least the chosen level to standard error."""
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )


def open_listener(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        SettingsError: The port is in use or not ours to take, or the address is not this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise SettingsError(f"host {host!r} is no address: {error.strerror}. Choose another --host.") from error
    # The protocol is named because asyncio switches Nagle's algorithm off for such sockets only, and with it on, every
    # small answer waits 40 ms for an acknowledgement that the client delays.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise SettingsError(_refusal(host, port, error)) from error
    return listener


def _refusal(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use. Stop what listens there, or choose another --port (0: any free one)."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine. Choose another --host."
    return f"cannot listen on {host}:{port}: {error.strerror}. Choose another --port."


def url_of(listener: socket.socket) -> str:
    """Return the URL under which a listener is reached from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def run_server(
    client: ManagedClient,
    settings: ServerSettings,
    listener: socket.socket,
    announce: Callable[[str], None],
    on_end: Callable[[int], None] = lambda exit_code: None,
) -> None:
    """Serve a client until a signal comes; start it meanwhile, and close it after the last request.

    Args:
        client: Not started.
        settings: Of the server.
        listener: Listens already; closed on return.
        announce: Gets one line when requests can be served.
        on_end: Gets the process's exit code when every request has ended and only closing is left.

    Raises:
        PocketVLMError: The client did not start.
        KeyboardInterrupt: SIGINT came, and everything is stopped.
    """
    url = url_of(listener)
    server = EdgeServer(client, settings)
    with stopping_on_signals() as stop, _probes(settings) as heartbeat:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        starting = asyncio.create_task(client.start())
        beating = asyncio.create_task(_beat(client, server, heartbeat))
        asked = asyncio.create_task(stop.is_asked.wait())
        try:
            await asyncio.wait((serving, starting, asked), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                names = ", ".join(card.name for card in await client.models())
                announce(f"PocketVLM serves {names} at {url} (how to ask: {url}/docs)")
            await asyncio.wait((serving, asked), return_when=asyncio.FIRST_COMPLETED)
        finally:
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


async def _beat(client: ManagedClient, server: EdgeServer, heartbeat: Heartbeat) -> None:
    """Look after the connections, and tell that the loop runs, for ever."""
    while True:
        try:
            server.watch.sweep()
            health = await client.health()
            heartbeat.beat(replace(health, is_ready=False, reason="it stops") if server.should_exit else health)
        except Exception:
            logger.exception("the connections could not be looked after; the next look is in %.1f s", _BEAT_S)
        await asyncio.sleep(_BEAT_S)
