"""A socket that listens for a server, or one line that says why it cannot."""

from __future__ import annotations

import errno
import socket

from bundle.errors import SettingsError

BACKLOG_CONNECTIONS = 2048
"""That the system keeps until they are accepted; uvicorn's own default."""


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


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Return the URL under which a listener is reached from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
