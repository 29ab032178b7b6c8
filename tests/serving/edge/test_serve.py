"""The one-process server, as a process: started, asked, and stopped by signals."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from bundle.errors import SettingsError
from serving.listener import open_listener, url_of

ROOT = Path(__file__).resolve().parents[3]
START_S = 60.0  # a busy machine imports and loads for seconds
STOP_S = 30.0

REAL = """
import sys
from pathlib import Path
from serving.edge.serve import serve
from serving.settings import EngineSettings
from serving.settings import ServerSettings
settings = ServerSettings(port=0, engine=EngineSettings(intra_threads=1, context_tokens=512))
serve([Path(each) for each in sys.argv[1:]], settings, lambda line: print(line, flush=True))
"""

FAKE = """
import asyncio, sys
from serving.edge.serve import run_server
from serving.listener import open_listener, url_of
from serving.log import configure_logging
from serving.fake import FakeBehaviour, FakeClient
from serving.protocol import Health
from serving.settings import ServerSettings

load_s, token_s, drain_timeout_s = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])

class SlowToLoad(FakeClient):
    async def start(self):
        self.behaviour.health = Health(is_ready=False, reason="loading")
        await asyncio.sleep(load_s)
        self.behaviour.health = Health(is_ready=True)
    async def close(self):
        await super().close()
        print("closed", flush=True)

settings = ServerSettings(drain_timeout_s=drain_timeout_s)
configure_logging(settings)
with open_listener("127.0.0.1", 0) as listener:
    print(url_of(listener), flush=True)
    client = SlowToLoad(behaviour=FakeBehaviour(token_s=token_s))
    asyncio.run(run_server(client, settings, listener, lambda line: print(line, flush=True)))
print("ended", flush=True)
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def run() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a program; whatever the test does, it ends."""
    started: list[subprocess.Popen[str]] = []

    def begin(program: str, *arguments: str) -> subprocess.Popen[str]:
        started.append(start(program, *arguments))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def real_url(smolvlm_bundle: Path, clip_bundle: Path) -> Iterator[str]:
    """URL of a server of two tiny models."""
    process = start(REAL, str(smolvlm_bundle), str(clip_bundle))
    assert process.stdout is not None
    line = process.stdout.readline()
    if " at http" not in line:
        process.kill()
        pytest.fail(f"the server said {line!r} and {process.communicate()[1]}")
    yield line.split(" at ")[1].split()[0]
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=STOP_S)
    assert process.returncode == 0, log


@pytest.fixture
def image() -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def ask(image: dict[str, Any], **fields: Any) -> dict[str, Any]:
    content = [image, {"type": "text", "text": "What is this?"}]
    return {"model": "tiny-smolvlm", "messages": [{"role": "user", "content": content}], "max_tokens": 8, **fields}


def test_a_real_model_answers_about_an_image(real_url: str, image: dict[str, Any]) -> None:
    body = httpx.post(f"{real_url}/v1/chat/completions", json=ask(image), timeout=30).json()
    usage = body["usage"]
    assert usage["prompt_tokens"] > usage["prompt_tokens_details"]["image_tokens"] > 0
    assert 1 <= usage["completion_tokens"] <= 8


def test_a_real_stream_has_the_whole_answers_text(real_url: str, image: dict[str, Any]) -> None:
    import openai

    whole = httpx.post(f"{real_url}/v1/chat/completions", json=ask(image), timeout=30).json()
    with openai.OpenAI(base_url=f"{real_url}/v1", api_key="none", max_retries=0) as client:
        chunks = list(client.chat.completions.create(**ask(image, stream=True)))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == whole["choices"][0]["message"]["content"]


def test_a_real_dual_encoder_embeds_and_classifies(real_url: str, image: dict[str, Any]) -> None:
    body = {"model": "tiny-clip", "input": ["a cat", image]}
    embedded = httpx.post(f"{real_url}/v1/embeddings", json=body, timeout=30).json()
    norms = [sum(x * x for x in item["embedding"]) for item in embedded["data"]]
    assert norms == pytest.approx([1, 1], abs=1e-5)  # float32
    body = {"model": "tiny-clip", "images": [image], "labels": ["cat", "dog"]}
    classified = httpx.post(f"{real_url}/v1/classify", json=body, timeout=30).json()
    assert sum(item["score"] for item in classified["data"][0]["labels"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, "context_length_exceeded"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
                    }
                ]
            },
            "invalid_image",
        ),
    ],
    ids=["more tokens than the context", "not an image"],
)
def test_what_the_engine_refuses_is_a_400_and_the_next_is_answered(
    real_url: str, image: dict[str, Any], fields: dict[str, Any], code: str
) -> None:
    response = httpx.post(f"{real_url}/v1/chat/completions", json=ask(image, **fields), timeout=30)
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)
    assert httpx.post(f"{real_url}/v1/chat/completions", json=ask(image), timeout=30).status_code == 200


def test_readiness_is_red_until_the_models_are_loaded(run: Callable[..., subprocess.Popen[str]]) -> None:
    process = run(FAKE, "2", "0", "5")
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert httpx.get(f"{url}/health/live", timeout=START_S).status_code == 200
    loading = httpx.get(f"{url}/health/ready")
    assert (loading.status_code, loading.json()["reason"]) == (503, "loading")
    assert "PocketVLM serves fake-vlm, fake-clip at" in process.stdout.readline()
    assert httpx.get(f"{url}/health/ready").status_code == 200


def begin_stream(url: str) -> tuple[httpx.Client, Any]:
    client = httpx.Client(timeout=START_S)
    body = {"model": "fake-vlm", "stream": True, "messages": [{"role": "user", "content": "a b c d e"}]}
    stream = client.stream("POST", f"{url}/v1/chat/completions", json=body)
    return client, stream


def test_sigterm_lets_a_running_answer_end_and_closes_the_engine(run: Callable[..., subprocess.Popen[str]]) -> None:
    process = run(FAKE, "0", "0.2", "20")
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    process.stdout.readline()
    client, stream = begin_stream(url)
    with client, stream as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert rest[-2] == "data: [DONE]"
    out, log = process.communicate(timeout=STOP_S)
    assert (process.returncode, out.split()[-2:]) == (0, ["closed", "ended"]), log


def begin_whole(url: str, bodies: list[bytes]) -> threading.Thread:
    """Ask for a whole answer in a thread, which puts status and body into a list."""

    def ask_for_it() -> None:
        body = {"model": "fake-vlm", "messages": [{"role": "user", "content": "a b c d e"}]}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=START_S)
        bodies.append(b"%d %s" % (answer.status_code, answer.content))

    thread = threading.Thread(target=ask_for_it)
    thread.start()
    return thread


def wait_until_running(url: str, count: int) -> None:
    deadline_s = time.monotonic() + START_S
    while f'num_requests_running{{engine="0",model_name="fake-vlm"}} {count}.0' not in httpx.get(f"{url}/metrics").text:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.parametrize(
    "signals", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGTERM], [signal.SIGINT, signal.SIGINT]]
)
def test_answers_longer_than_the_drain_end_with_an_error_of_ours(
    run: Callable[..., subprocess.Popen[str]], signals: list[signal.Signals]
) -> None:
    process = run(FAKE, "0", "60", "1" if len(signals) == 1 else "60")
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    process.stdout.readline()
    whole: list[bytes] = []
    thread = begin_whole(url, whole)
    client, stream = begin_stream(url)
    with client, stream as response:
        lines = response.iter_lines()
        next(lines)
        wait_until_running(url, 2)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.5)
        rest = [line for line in lines if line]
    thread.join()
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "engine_dead"
    assert rest[-1] == "data: [DONE]"
    assert whole[0].startswith(b"503 ")
    assert b'"code":"engine_dead"' in whole[0]
    out, log = process.communicate(timeout=STOP_S)
    if signals[0] is signal.SIGTERM:
        assert (process.returncode, out.split()[-2:]) == (0, ["closed", "ended"]), log
        assert "Traceback" not in log
        assert "2 requests are ended: the server stops" in log
    else:
        assert log.rstrip().endswith("KeyboardInterrupt")


def test_half_a_request_does_not_hold_up_the_end(run: Callable[..., subprocess.Popen[str]]) -> None:
    process = run(FAKE, "0", "0", "60")
    assert process.stdout is not None
    host, port = process.stdout.readline().strip().removeprefix("http://").split(":")
    process.stdout.readline()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as half, socket.create_connection((host, int(port))) as body:
        half.sendall(head)
        body.sendall(head + b"Content-Length: 100\r\n\r\n{")
        httpx.get(f"http://{host}:{port}/health/live")
        process.send_signal(signal.SIGTERM)
        out, log = process.communicate(timeout=STOP_S)
        assert body.recv(1 << 16).startswith(b"HTTP/1.1 503 ")
    assert (process.returncode, out.split()[-2:]) == (0, ["closed", "ended"]), log


STUCK = """
import sys, threading, time
from pathlib import Path
from serving.edge import exiting, serve as edge_serve
from serving.fake import FakeClient
from serving.settings import ServerSettings

exiting.EXIT_GRACE_S = 1.0
exiting.LastResort.arm.__defaults__ = (1.0,)
place = sys.argv[1]

class Stuck(FakeClient):
    async def start(self):
        threading.Thread(target=time.sleep, args=(600,), name="stuck-pool").start()
        if place == "loop":
            import asyncio
            asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)

edge_serve.LocalClient = lambda bundles, settings, tracer: Stuck()
edge_serve.serve([], ServerSettings(port=0), lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("place", ["thread", "loop"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_thread_that_is_stuck_does_not_keep_the_process(
    run: Callable[..., subprocess.Popen[str]], place: str, number: signal.Signals, code: int
) -> None:
    process = run(STUCK, place)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    _, log = process.communicate(timeout=STOP_S)
    assert process.returncode == code, log
    assert "stuck-pool" in log


DEAF = """
import asyncio, sys, time
from serving.edge.serve import run_server
from serving.listener import open_listener
from serving.log import configure_logging
from serving.fake import FakeClient
from serving.settings import HttpSettings, ServerSettings

with open_listener("127.0.0.1", 0) as probe:
    port = probe.getsockname()[1]
settings = ServerSettings(http=HttpSettings(health_port=port, loop_timeout_s=1.5))

class Deaf(FakeClient):
    async def embed(self, request):
        time.sleep(4)
        return await super().embed(request)

print(port, flush=True)
with open_listener("127.0.0.1", 0) as listener:
    asyncio.run(run_server(Deaf(), settings, listener, lambda line: print(line, flush=True)))
"""


def test_health_on_a_port_of_its_own_tells_of_an_event_loop_that_is_silent(
    run: Callable[..., subprocess.Popen[str]],
) -> None:
    process = run(DEAF)
    assert process.stdout is not None
    probes = f"http://127.0.0.1:{process.stdout.readline().strip()}/health"
    url = process.stdout.readline().split(" at ")[1].split()[0]
    while httpx.get(f"{probes}/ready").status_code != 200:
        time.sleep(0.1)
    thread = threading.Thread(
        target=httpx.post,
        args=(f"{url}/v1/embeddings",),
        kwargs={"json": {"model": "fake-clip", "input": "a"}, "timeout": 60},
    )
    thread.start()
    deadline_s = time.monotonic() + STOP_S
    while (answer := httpx.get(f"{probes}/live")).status_code == 200:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert "silent" in answer.json()["reason"]
    assert httpx.get(f"{probes}/ready").status_code == 503
    thread.join()
    while httpx.get(f"{probes}/live").status_code != 200:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_sigint_stops_cleanly_and_is_told_as_an_interrupt(run: Callable[..., subprocess.Popen[str]]) -> None:
    process = run(FAKE, "0", "0", "5")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, log = process.communicate(timeout=STOP_S)
    assert out.split() == ["closed"]
    assert log.rstrip().endswith("KeyboardInterrupt")


def test_a_bundle_that_is_refused_ends_the_server_with_its_error(
    run: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = run(REAL, str(tmp_path))
    _, log = process.communicate(timeout=START_S)
    assert process.returncode == 1
    assert "is not a bundle: it holds no manifest.json" in log


def test_a_port_in_use_is_said_in_one_line() -> None:
    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port} on 127.0.0.1 is in use.*--port"):
            open_listener("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_an_address_of_no_or_another_machine_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match="--host"):
        open_listener(host, 0)


def test_small_answers_do_not_wait_for_acknowledgements() -> None:
    """asyncio decides by the accepted socket's protocol; a listener that does not name it costs 40 ms per request."""

    async def nodelay() -> int:
        seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            seen.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with open_listener("127.0.0.1", 0) as listener:
            async with await asyncio.start_server(accept, sock=listener):
                with socket.create_connection(listener.getsockname()):
                    return await asyncio.wait_for(seen, 5)

    assert asyncio.run(nodelay()) != 0


def test_the_url_of_a_listener_on_all_addresses_is_reachable() -> None:
    with open_listener("0.0.0.0", 0) as listener:
        host, port = url_of(listener).removeprefix("http://").split(":")
        socket.create_connection((host, int(port)), timeout=5).close()
