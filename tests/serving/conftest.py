"""Images, requests and their answers, as the tests of the server's rooms want them."""

import asyncio
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from serving.edge.server import EdgeServer
from serving.listener import open_listener, url_of
from serving.models.pool import PreprocessPool
from serving.protocol import (
    FinishedEvent,
    GenerateRequest,
    ImagePart,
    Message,
    SamplingParams,
    TextPart,
)
from serving.settings import EngineSettings, ServerSettings


def png(seed: int = 0, width_px: int = 70, height_px: int = 50) -> bytes:
    """Return an encoded image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def image_bytes():
    """The function that makes an encoded image from a seed and a size."""
    return png


@pytest.fixture(scope="session")
def ask():
    """The function that makes a chat request of one message."""

    def make(*parts: str | bytes, model: str = "tiny-smolvlm", **sampling) -> GenerateRequest:
        content = tuple(TextPart(part) if isinstance(part, str) else ImagePart(part) for part in parts)
        return GenerateRequest("r", model, (Message("user", content),), SamplingParams(**sampling))

    return make


@pytest.fixture(scope="session")
def check_greedy():
    """The function that holds an answer to be greedy by transformers' model of the same weights.

    Every token has the highest logit, or one as high: which of two such is the largest, the order of a sum decides.
    """

    def check(model, inputs, token_ids, max_tokens: int, tolerance: float = 2e-3) -> None:
        import torch

        answer = torch.tensor([token_ids])
        ids = torch.cat([inputs["input_ids"], answer], dim=1)
        with torch.no_grad():
            logits = model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
        logits = logits[0, -len(token_ids) - 1 : -1]
        highest, median = logits.max(dim=1).values, logits.median(dim=1).values
        assert (highest - median > 50 * tolerance).all()  # else any token would do
        assert (highest - logits.gather(1, answer.T)[:, 0] <= tolerance).all()
        eos = np.atleast_1d(model.generation_config.eos_token_id or -1).tolist()
        assert [token_id in eos for token_id in token_ids[:-1]] == [False] * (len(token_ids) - 1)
        assert len(token_ids) == max_tokens or token_ids[-1] in eos

    return check


@dataclass(frozen=True)
class Answered:
    """One whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finished: FinishedEvent


@pytest.fixture(scope="session")
def answer():
    """The coroutine function that reads a generation to its end and checks its form."""

    async def read(model, request: GenerateRequest) -> Answered:
        events = [event async for event in model.generate(request)]
        assert [isinstance(event, FinishedEvent) for event in events] == [False] * (len(events) - 1) + [True]
        tokens = events[:-1]
        return Answered(
            "".join(event.text for event in tokens), tuple(i for event in tokens for i in event.token_ids), events[-1]
        )

    return read


@pytest.fixture
def pool():
    pool = PreprocessPool(EngineSettings(preprocess_threads=2))
    yield pool
    pool.close()


@contextmanager
def edge_server(client, settings: ServerSettings, send_buffer_bytes: int | None):
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


@pytest.fixture(scope="session")
def long_edge_server():
    """The context manager that serves a client for longer than one test."""
    return edge_server


@pytest.fixture
def serve_edge():
    """The function that serves a client as the edge server does, until the test ends, and returns the URL."""
    with ExitStack() as stack:

        def serve(client, settings: ServerSettings | None = None, send_buffer_bytes: int | None = None) -> str:
            return stack.enter_context(edge_server(client, settings or ServerSettings(), send_buffer_bytes))

        yield serve
