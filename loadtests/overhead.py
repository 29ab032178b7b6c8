"""What HTTP costs per request: `python -m loadtests.overhead`, and with `--ray` Ray Serve beside it.

The application runs over an engine without a model, so that what is left is parsing, routing and the way between
processes. One request is in flight at a time, and the servers take turns. "engine alone" is the same request made
of the engine without HTTP: decoding an image is in it, and is not HTTP's.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import importlib.util
import json
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from bundle.errors import MachineError
from bundle.extras import install_line
from bundle.machine import Machine, this_machine
from loadtests.distribution import Distribution
from loadtests.images import draw_image, image_part
from loadtests.sse import SSEParser, read_delta
from loadtests.stopwatch import Stopwatch, distribution_of
from loadtests.wording import counted, number
from serving.edge.serve import run_server
from serving.fake import FAKE_CLIP, FAKE_VLM, FakeClient
from serving.listener import open_listener
from serving.protocol import EmbedRequest, GenerateRequest, ImagePart, Message, TextPart
from serving.settings import ServerSettings

ALONE = "engine alone"
_PACKAGES = ("pocketvlm", "fastapi", "uvicorn", "pydantic", "ray", "httptools", "uvloop")
_IMAGE_PX = 256
_QUESTION = "What is in the picture?"
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 30.0
_RAY_CPUS = 8  # logical: Ray only admits replicas by them
_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Case:
    """One kind of request.

    Attributes:
        name: In the table.
        path: Of the route.
        body: JSON; None makes it a GET.
        is_first_text: Time until the first streamed text instead of the whole answer.
        alone: The same work of the engine without HTTP; None where there is none.
    """

    name: str
    path: str
    body: dict[str, Any] | None
    is_first_text: bool = False
    alone: Callable[[FakeClient], Awaitable[object]] | None = None


@dataclass(frozen=True)
class OverheadLine:
    """What one kind of request took of one server."""

    case: str
    server: str
    milliseconds: Distribution


@dataclass(frozen=True)
class OverheadReport:
    """All lines, and where they were measured."""

    lines: tuple[OverheadLine, ...]
    machine: Machine


def cases() -> tuple[Case, ...]:
    """Return the requests: no work at all, then each route with the least of work."""
    png = draw_image(0, _IMAGE_PX)
    question = {"role": "user", "content": _QUESTION}
    shown = {"role": "user", "content": [image_part(png), {"type": "text", "text": _QUESTION}]}
    chat: dict[str, Any] = {"model": FAKE_VLM.name, "messages": [question]}
    embed: dict[str, Any] = {"model": FAKE_CLIP.name}
    return (
        Case("GET /health/live", "/health/live", None),
        Case("embed a text", "/v1/embeddings", {**embed, "input": [_QUESTION]}, alone=_embedding(TextPart(_QUESTION))),
        Case(
            "embed an image", "/v1/embeddings", {**embed, "input": [image_part(png)]}, alone=_embedding(ImagePart(png))
        ),
        Case("chat", "/v1/chat/completions", chat, alone=_chat(TextPart(_QUESTION))),
        Case(
            "chat about an image",
            "/v1/chat/completions",
            {**chat, "messages": [shown]},
            alone=_chat(ImagePart(png), TextPart(_QUESTION)),
        ),
        Case("streamed chat, first text", "/v1/chat/completions", {**chat, "stream": True}, is_first_text=True),
        Case(
            "streamed chat, whole", "/v1/chat/completions", {**chat, "stream": True}, alone=_chat(TextPart(_QUESTION))
        ),
    )


def _embedding(part: TextPart | ImagePart) -> Callable[[FakeClient], Awaitable[object]]:
    return lambda client: client.embed(EmbedRequest("alone", FAKE_CLIP.name, (part,)))


def _chat(*parts: TextPart | ImagePart) -> Callable[[FakeClient], Awaitable[object]]:
    async def generate(client: FakeClient) -> int:
        request = GenerateRequest("alone", FAKE_VLM.name, (Message("user", parts),))
        return len([event async for event in client.generate(request)])

    return generate


def measure_overhead(watch: Stopwatch, *, with_ray: bool = False) -> OverheadReport:
    """Return what each kind of request takes on the edge server and, where asked for, under Ray Serve.

    Raises:
        MachineError: A server did not start, or Ray is not installed.
    """
    starters = {"edge": _serve_edge, **({"Ray Serve": _serve_ray} if with_ray else {})}
    with ExitStack() as stack:
        urls = {name: stack.enter_context(_running(name, start)) for name, start in starters.items()}
        lines = [line for case in cases() for line in measure_case(case, urls, watch)]
    return OverheadReport(tuple(lines), this_machine(_PACKAGES))


def measure_case(case: Case, urls: Mapping[str, str], watch: Stopwatch) -> Iterator[OverheadLine]:
    """Yield one kind of request's time of the engine alone and of each server, the servers taking turns."""
    if case.alone is not None:
        yield OverheadLine(case.name, ALONE, asyncio.run(_alone(case.alone, watch)))
    connections = {name: _connection(url) for name, url in urls.items()}
    times_ms = watch.run({name: partial(exchange, connection, case) for name, connection in connections.items()})
    for name, connection in connections.items():
        connection.close()
        yield OverheadLine(case.name, name, distribution_of(times_ms[name]))


async def _alone(work: Callable[[FakeClient], Awaitable[object]], watch: Stopwatch) -> Distribution:
    client = FakeClient()

    async def timed() -> float:
        started_s = time.perf_counter()
        await work(client)
        return (time.perf_counter() - started_s) * 1e3

    return await watch.collect_async(timed)


def _connection(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=_START_TIMEOUT_S)


def exchange(connection: http.client.HTTPConnection, case: Case) -> float:
    """Return the milliseconds from sending a request to its answer's end, or to its first streamed text.

    Raises:
        MachineError: The server refused the request, or its stream holds no text.
    """
    body = None if case.body is None else json.dumps(case.body)
    started_s = time.perf_counter()
    connection.request("GET" if body is None else "POST", case.path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    first_text_s = _first_text_s(response) if case.is_first_text else None
    rest = response.read()
    ended_s = time.perf_counter()
    if response.status != http.HTTPStatus.OK:
        raise MachineError(f"{case.name}: the server answered {response.status}: {rest[:200]!r}")
    return ((first_text_s or ended_s) - started_s) * 1e3


def _first_text_s(response: http.client.HTTPResponse) -> float:
    parser = SSEParser()
    while piece := response.read1(_READ_BYTES):
        now_s = time.perf_counter()
        if any(read_delta(event).text for event in parser.feed(piece)):
            return now_s
    raise MachineError(f"the server's stream ended without text (status {response.status})")


@contextmanager
def _running(name: str, start: Callable[[Connection], None]) -> Iterator[str]:
    """Run a server in a process of its own while the block lasts; yields its URL."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=start, args=(theirs,), name=name)
    process.start()
    theirs.close()
    try:
        yield _url(name, ours)
    finally:
        process.terminate()
        process.join(_STOP_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()


def _url(name: str, connection: Connection) -> str:
    try:
        if connection.poll(_START_TIMEOUT_S):
            return str(connection.recv())
    except EOFError as error:
        raise MachineError(f"the {name} server ended before it was ready; its words are above") from error
    raise MachineError(f"the {name} server was not ready within {_START_TIMEOUT_S:g} s")


def _serve_edge(connection: Connection) -> None:
    """Run the edge server until SIGTERM; sends its URL when it is ready."""
    settings = ServerSettings(port=0, log_level="warning")
    with open_listener(settings.host, settings.port) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        asyncio.run(run_server(FakeClient(), settings, listener, lambda _: connection.send(url)))


def _serve_ray(connection: Connection) -> None:
    """Run the application on a local Ray cluster until SIGTERM; sends its URL when it is ready."""
    from serving.cluster.environment import set_ray_environment

    set_ray_environment()
    import ray
    from ray import serve

    from serving.cluster.application import ClusterArgs, ServedModel, application

    models = [ServedModel(card, partial(FakeClient, (card,))) for card in (FAKE_VLM, FAKE_CLIP)]
    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    ray.init("local", num_cpus=_RAY_CPUS, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())  # after ray.init, which sets a handler that leaves at once
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        # The arguments' bundles are those of `build_app`; `application` is given its models.
        serve.run(application(models, ClusterArgs(bundles=(Path("unused"),))), route_prefix="/")
        connection.send(f"http://127.0.0.1:{port}")
        stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


def print_overhead(report: OverheadReport, console: Console) -> None:
    """Print a table of medians and 95th percentiles, and what was measured on what."""
    servers = list(dict.fromkeys(line.server for line in report.lines if line.server != ALONE))
    table = Table("milliseconds, median (p95)", ALONE, *servers)
    found = {(line.case, line.server): line.milliseconds for line in report.lines}
    for case in dict.fromkeys(line.case for line in report.lines):
        cells = (found.get((case, server)) for server in (ALONE, *servers))
        table.add_row(case, *("" if cell is None else f"{number(cell.p50)} ({number(cell.p95)})" for cell in cells))
    console.print(table)
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    num_runs = report.lines[0].milliseconds.n
    where = f"{machine.cpu}, {counted(machine.cores, 'core')}; {machine.system}"
    console.print(f"[dim]n {num_runs}; {where}; {versions}[/dim]")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the module's command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.overhead", description="What HTTP costs per request.")
    parser.add_argument("--ray", action="store_true", help="measure Ray Serve as well, in turns with the edge server")
    parser.add_argument("--repeats", type=int, default=300, help="requests of each kind (default: 300, at least 3)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if options.ray and importlib.util.find_spec("ray") is None:
        print(f"error: --ray needs Ray. Install it with: {install_line('ray')}", file=sys.stderr)
        return 1
    try:
        report = measure_overhead(Stopwatch(warmup=20, repeats=options.repeats), with_ray=options.ray)
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        print_overhead(report, Console(highlight=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
