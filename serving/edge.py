"""The application in one process: uvicorn, and the engine beside it. For a board, a laptop, a plain container."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from bundle.errors import SettingsError
from serving.api.app import create_app
from serving.models.client import LocalClient
from serving.protocol import ManagedClient
from serving.settings import ServerSettings

_BACKLOG_CONNECTIONS = 2048  # uvicorn's own default


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
    with open_listener(settings.host, settings.port) as listener:
        asyncio.run(run_server(LocalClient(bundles, settings.engine), settings, listener, announce))


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
        listener.listen(_BACKLOG_CONNECTIONS)
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
    client: ManagedClient, settings: ServerSettings, listener: socket.socket, announce: Callable[[str], None]
) -> None:
    """Serve a client until a signal comes; start it meanwhile, and close it after the last request.

    Args:
        client: Not started.
        settings: Of the server.
        listener: Listens already; closed on return.
        announce: Gets one line when requests can be served.

    Raises:
        PocketVLMError: The client did not start.
        KeyboardInterrupt: SIGINT came, and everything is stopped.
    """
    url = url_of(listener)
    server = _Server(_uvicorn_config(client, settings))
    with _stopping_on_signals(server) as received:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        starting = asyncio.create_task(client.start())
        try:
            await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                starting.result()
                names = ", ".join(card.name for card in await client.models())
                announce(f"PocketVLM serves {names} at {url} (how to ask: {url}/docs)")
            await serving
        finally:
            server.should_exit = True
            await asyncio.gather(serving, starting, return_exceptions=True)
            await client.close()
    if signal.SIGINT in received:
        raise KeyboardInterrupt


def _uvicorn_config(client: ManagedClient, settings: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(client, settings.api),
        log_config=None,
        log_level=settings.log_level,
        access_log=settings.log_level == "debug",
        timeout_graceful_shutdown=settings.drain_timeout_s,
        lifespan="off",
        ws="none",
        server_header=False,
    )


class _Server(uvicorn.Server):
    """Without signal handlers of its own: they would raise each signal again before the engine is closed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


@contextmanager
def _stopping_on_signals(server: uvicorn.Server) -> Iterator[list[signal.Signals]]:
    """Drain the server on the first SIGTERM or SIGINT, drop what still runs on the second; yield those that came."""
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        server.should_exit = True
        server.force_exit = bool(received)
        received.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        yield received
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
