"""The real application over an engine without a model, on a port of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from devices.energy.account import EnergyAccount, FoundMeters
from devices.energy.meter import PowerIntegral
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from serving.api.app import create_app
from serving.api.energy import EnergyMetrics
from serving.fake import FakeBehaviour, FakeClient
from serving.listener import open_listener, url_of
from serving.settings import ApiSettings

FIRST_TOKEN_S = 0.03
TOKEN_S = 0.01
METER_WATTS = 10.0
_START_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class FakeServer:
    """A running server; its client's `behaviour` may be changed between requests."""

    url: str
    client: FakeClient


class Steady:
    """A meter of a board that takes the same power at all times."""

    name, covers, period_s = "steady", "board", 1.0

    def __init__(self) -> None:
        self._integral = PowerIntegral(lambda: METER_WATTS)

    def joules(self) -> float:
        return self._integral.joules()

    def close(self) -> None:
        """Nothing is held."""


@contextlib.contextmanager
def serving(client: FakeClient) -> Iterator[str]:
    """Serve a client on a loopback port until the block ends; yields the URL."""
    listener = open_listener("127.0.0.1", 0)
    metrics = EnergyMetrics(EnergyAccount(FoundMeters((Steady(),), ())))
    app = create_app(client, ApiSettings(), collectors=(metrics,))
    config = uvicorn.Config(app, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not server.started and time.monotonic() < deadline_s:
            time.sleep(0.01)
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="session")
def serve() -> Callable[[FakeClient], contextlib.AbstractContextManager[str]]:
    """`with serve(client) as url` runs the application over a client until the block ends."""
    return serving


@pytest.fixture(scope="session")
def fake_server() -> Iterator[FakeServer]:
    """Both fake models behind the real HTTP application."""
    client = FakeClient(behaviour=FakeBehaviour(first_token_s=FIRST_TOKEN_S, token_s=TOKEN_S))
    with serving(client) as url:
        yield FakeServer(url, client)


@pytest.fixture(scope="session")
def dual_bundle(smolvlm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a variant whose prompts run in int8 and whose single tokens run in int4; read only."""
    folder = tmp_path_factory.mktemp("variant") / "dual"
    quantize_bundle(smolvlm_bundle, folder, weights="int4", options=Options(profile="dual"))
    return folder
