"""`pocketvlm serve` whose sockets hold little: a client that reads nothing is felt after kilobytes, not megabytes."""

from __future__ import annotations

import socket

import pocketvlm
from serving.edge import serve as edge

_BUFFER_BYTES = 4096


def main() -> None:
    """Serve, with small send buffers."""
    plain = edge.open_listener

    def narrow(host: str, port: int) -> socket.socket:
        listener = plain(host, port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)  # connections inherit it
        return listener

    edge.open_listener = narrow
    pocketvlm.main()


if __name__ == "__main__":
    main()
