"""`serve` with an engine that needs no model: for attacks on the HTTP application that stands before it."""

from __future__ import annotations

import asyncio
import os
import sys

from serving.edge.serve import run_server
from serving.fake import FakeBehaviour, FakeClient
from serving.listener import open_listener
from serving.log import configure_logging
from serving.settings_sources import load_settings

TOKEN_S = 0.05


def main() -> None:
    """Serve on the port that follows `--port`, with the settings of the environment."""
    settings = load_settings(None, os.environ, {"port": int(sys.argv[sys.argv.index("--port") + 1])})
    configure_logging(settings)
    client = FakeClient(behaviour=FakeBehaviour(token_s=TOKEN_S))
    with open_listener(settings.host, settings.port) as listener:
        asyncio.run(run_server(client, settings, listener, print))


if __name__ == "__main__":
    main()
