"""The same application on a real local Ray cluster: tiny models, and fakes that are slow or broken on purpose."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import PydanticDeprecatedSince20

from bundle.errors import (
    ContextLengthError,
    EngineDeadError,
    ImageError,
    PocketVLMError,
)
from serving.fake import FakeBehaviour, FakeClient
from serving.listener import open_listener
from serving.protocol import (
    GenerateRequest,
    ImagePart,
    Message,
    ModelCard,
    TextPart,
)

with warnings.catch_warnings():
    # Ray 2.60 declares its own settings in a way that pydantic will drop.
    warnings.simplefilter("ignore", PydanticDeprecatedSince20)
    import ray
    from ray import serve

    from serving.cluster import application as cluster
    from serving.cluster.application import ClusterArgs, ServedModel
    from serving.cluster.client import RayClient, Replicas
    from serving.cluster.environment import RAY_ENVIRONMENT
    from serving.cluster.watch import watch_of

ROOT = Path(__file__).resolve().parents[3]
APPLICATION = "tested"
CHAT = "/v1/chat/completions"
START_S = 120.0  # Ray starts a dozen processes; a busy two-core machine takes its time
PROCESS_S = 400.0  # one process: seconds where nothing else runs, two minutes were seen beside 20 that do
SCALE_S = PROCESS_S

# Ray leaves sockets and log files of its child processes to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def fake(name: str, **behaviour: Any) -> ServedModel:
    card = ModelCard(name, "image-text-to-text", "fake", {}, 0, 1000)
    return ServedModel(card, partial(FakeClient, (card,), FakeBehaviour(**behaviour)))


FAKES = (
    fake("slow", token_s=0.05),
    fake("single", token_s=60, max_running=1),
    fake("dying", failure=EngineDeadError("worker died"), failure_after_tokens=2),
    fake("full", token_s=60),
    fake("buggy", failure=KeyError("a bug")),
    fake("org/model #1"),
    fake("idle"),
)
CANARY = {
    "name": "either",
    "variants": [{"model": "slow", "weight": 50}, {"model": "org/model #1", "weight": 50}],
}


@pytest.fixture(scope="module")
def url(smolvlm_bundle: Path, clip_bundle: Path) -> Iterator[str]:
    """URL of a running application on a local cluster that reports load every half second."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "0.5")
        patch.setenv("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "0.5")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield from serve_application(cluster_args(smolvlm_bundle, clip_bundle))


def cluster_args(*bundles: Path, **ray_settings: Any) -> ClusterArgs:
    scaling = {
        "num_cpus": 0.1,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 0.5,
        "downscale_delay_s": 0.5,
        "look_back_period_s": 10.1,
    }
    from_zero = {**scaling, "min_replicas": 0, "downscale_delay_s": 600, "hold_timeout_s": PROCESS_S}
    settings = {
        "silent_after_s": 30,
        "ingress_num_cpus": 0.1,
        "generator": scaling,
        "embedder": {**scaling, "max_replicas": 1},
        "models": {"idle": from_zero},
        "canaries": [CANARY],
    }
    return ClusterArgs.model_validate(
        {
            "bundles": [str(bundle) for bundle in bundles],
            "engine": {"intra_threads": 1, "context_tokens": 512},
            "drain_timeout_s": 30,
            "ray": {**settings, **ray_settings},
        }
    )


def serve_application(args: ClusterArgs) -> Iterator[str]:
    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    try:
        with suppress(TimeoutError):  # of a minute for the proxy, which starts all the same
            serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(cluster.application((*cluster.served_models(args), *FAKES), args), name=APPLICATION)
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()
    assert not ray.is_initialized()


def ask(model: str, text: str = "a b c", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def wait_until(is_true: Callable[[], bool], patience_s: float) -> None:
    deadline_s = time.monotonic() + patience_s
    while not is_true():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


@pytest.mark.slow
def test_a_chat_of_a_real_model_streams_through_the_cluster(url: str) -> None:
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(**ask("tiny-smolvlm", max_tokens=8))
        chunks = list(client.chat.completions.create(**ask("tiny-smolvlm", max_tokens=8, stream=True)))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == whole.choices[0].message.content


@pytest.mark.slow
def test_a_stream_arrives_piece_by_piece(url: str) -> None:
    """The answer has 5 tokens, 50 ms apart; half of the time is left to a busy machine.

    One that stalls reads what waited for it at once, so there are five tries: a stream that is held back never spreads.
    """

    def spread_s() -> float:
        arrivals = []
        with httpx.stream("POST", url + CHAT, json=ask("slow", stream=True), timeout=30) as response:
            for line in response.iter_lines():
                if '"content":"' in line:
                    arrivals.append(time.monotonic())
        assert len(arrivals) == 6
        return arrivals[-1] - arrivals[1]

    assert any(spread_s() > 4 * 0.025 for _ in range(5))


@pytest.mark.slow
def test_models_probes_and_metrics_answer_on_the_cluster(url: str) -> None:
    names = [card["id"] for card in httpx.get(f"{url}/v1/models").json()["data"]]
    assert names == ["tiny-smolvlm", "tiny-clip", *(model.name for model in FAKES), "either"]
    assert httpx.get(f"{url}/health/ready").json() == {"status": "ready"}
    assert httpx.get(f"{url}/health/live").json() == {"status": "live"}


@pytest.mark.slow
def test_gauges_of_the_engines_are_told_by_the_ingress(url: str) -> None:
    with httpx.stream("POST", url + CHAT, json=ask("single", stream=True), timeout=30) as response:
        lines = response.iter_lines()  # kept: a dropped iterator closes the connection
        next(lines)
        running = re.compile(r'pocketvlm:num_requests_running{engine="[^"]+",model_name="single"} 1\.0')
        wait_until(lambda: running.search(httpx.get(f"{url}/metrics").text), 15)
        models = httpx.get(f"{url}/v1/status", timeout=60).json()["models"]
        told = next(model for model in models if model["id"] == "single")
        ((replica, engine),) = told["engines"].items()
        assert running.search(httpx.get(f"{url}/metrics").text)[0].split('"')[1] == replica
        assert [slot["state"] for slot in engine["slots"]] == ["decode"]
    assert 'pocketvlm:num_replicas{model_name="single"} 1.0' in httpx.get(f"{url}/metrics").text


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (ask("tiny-smolvlm", "word " * 2000), 400, "context_length_exceeded"),
        (ask("nobody"), 404, "model_not_found"),
    ],
    ids=["context", "unknown model"],
)
def test_an_error_in_a_replica_keeps_its_status(
    url: str, body: dict[str, Any], status: int, code: str, stream: bool
) -> None:
    response = httpx.post(url + CHAT, json={**body, "stream": stream}, timeout=30)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


@pytest.mark.slow
def test_an_error_in_a_replica_keeps_its_class_text_and_field(url: str) -> None:
    deployment = "generator-tiny-smolvlm"
    handle = cluster.serve.get_deployment_handle(deployment, APPLICATION)
    replicas = Replicas(handle, handle.options(stream=True), watch_of(deployment))

    async def error_of(part: TextPart | ImagePart) -> PocketVLMError:
        client = RayClient([], {"tiny-smolvlm": replicas}, 60)
        request = GenerateRequest("r", "tiny-smolvlm", (Message("user", (part,)),))
        with pytest.raises(PocketVLMError) as caught:
            async for _ in client.generate(request):
                pass
        return caught.value

    too_long = asyncio.run(error_of(TextPart("word " * 2000)))
    assert type(too_long) is ContextLengthError
    assert "512" in str(too_long)
    assert type(asyncio.run(error_of(ImagePart(b"no image")))) is ImageError


@pytest.mark.slow
def test_an_engine_that_dies_in_the_middle_of_an_answer_is_told(url: str) -> None:
    assert httpx.post(url + CHAT, json=ask("dying"), timeout=30).status_code == 503
    lines = httpx.post(url + CHAT, json=ask("dying", stream=True), timeout=30).text.split("\n\n")
    assert '"content":" images."' in lines[2]
    assert '"code":"engine_dead"' in lines[3]
    assert lines[4] == "data: [DONE]"


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_of_rays_is_429_with_retry_after(url: str, stream: bool) -> None:
    """The model takes 16 requests a replica, one replica's worth at first, and 64 wait."""

    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=200)) as client:
            asked = [
                asyncio.ensure_future(client.post(url + CHAT, json=ask("full", stream=stream))) for _ in range(130)
            ]
            done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            done |= (await asyncio.wait(waiting, timeout=2))[0]
            for each in asked:
                each.cancel()
            return [each.result() for each in done]

    refused = asyncio.run(flood())
    assert {(each.status_code, each.json()["error"]["code"]) for each in refused} == {(429, "overloaded")}
    assert {each.headers["retry-after"] for each in refused} == {"1"}


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_in_a_replica_is_a_500_of_the_apis_form(url: str, stream: bool) -> None:
    response = httpx.post(url + CHAT, json=ask("buggy", stream=stream), timeout=30)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")


@pytest.mark.slow
def test_a_model_whose_name_ray_would_not_take_is_served(url: str) -> None:
    response = httpx.post(url + CHAT, json=ask("org/model #1"), timeout=30)
    assert (response.status_code, response.json()["model"]) == (200, "org/model #1")


@pytest.mark.slow
def test_an_answer_has_one_request_id(url: str) -> None:
    response = httpx.get(f"{url}/health/live", headers={"X-Request-ID": "mine-1"})
    assert response.headers.get_list("x-request-id") == ["mine-1"]
    assert len(httpx.get(f"{url}/health/live").headers.get_list("x-request-id")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("leaves_by", ["stream", "whole"])
def test_a_client_that_leaves_frees_its_place_in_the_replica(url: str, leaves_by: str) -> None:
    """The model takes one request at a time, and its second token a minute."""
    if leaves_by == "stream":
        with httpx.stream("POST", url + CHAT, json=ask("single", stream=True), timeout=30) as response:
            lines = response.iter_lines()  # kept: a dropped iterator closes the connection
            next(lines)
            assert httpx.post(url + CHAT, json=ask("single", max_tokens=1), timeout=30).status_code == 429
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + CHAT, json=ask("single"), timeout=3)
    wait_until(lambda: httpx.post(url + CHAT, json=ask("single", max_tokens=1), timeout=30).status_code == 200, 10)


def image_part() -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), "red").save(buffer, "PNG")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"}}


@pytest.mark.slow
def test_every_route_of_a_dual_encoder_answers_on_the_cluster(url: str) -> None:
    def posted(path: str, **fields: Any) -> dict[str, Any]:
        response = httpx.post(url + path, json={"model": "tiny-clip", **fields}, timeout=60)
        assert response.status_code == 200, response.text
        return response.json()

    items = posted("/v1/embeddings", input=["a", "b", "c", image_part()])["data"]
    vectors = np.array([item["embedding"] for item in items])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)  # float32
    packed = posted("/v1/embeddings", input="a", encoding_format="base64")["data"][0]["embedding"]
    # float32, twice: alone and in a batch
    np.testing.assert_allclose(np.frombuffer(b64decode(packed), np.float32), vectors[0], atol=1e-5)

    ranked = posted("/v1/rerank", query="a", documents=["b", "c", image_part()])["results"]
    scores = vectors[1:] @ vectors[0]
    assert [each["index"] for each in ranked] == np.argsort(-scores).tolist()
    np.testing.assert_allclose([each["relevance_score"] for each in ranked], np.sort(scores)[::-1], atol=1e-5)

    scored = posted("/v1/score", text_1="a", text_2=["b", "c"])["data"]
    np.testing.assert_allclose([each["score"] for each in scored], scores[:2], atol=1e-5)

    [item] = posted("/v1/classify", images=[image_part()], labels=["b", "c"], prompt_template="{}")["data"]
    labels = {each["label"]: each["score"] for each in item["labels"]}
    assert sum(labels.values()) == pytest.approx(1, abs=1e-5)
    near = vectors[1:3] @ vectors[3]
    assert (labels["b"] > labels["c"]) == (near[0] > near[1])


@pytest.mark.slow
def test_a_second_replica_comes_under_load_and_goes_after_it(url: str) -> None:
    def num_replicas() -> int:
        deployments = serve.status().applications[APPLICATION].deployments
        return deployments["generator-slow"].replica_states.get("RUNNING", 0)

    is_over = threading.Event()
    statuses: list[int] = []

    def keep_asking() -> None:
        with httpx.Client(timeout=60) as client:
            while not is_over.is_set():
                statuses.append(client.post(url + CHAT, json=ask("slow", "a " * 200, stream=True)).status_code)

    assert num_replicas() == 1
    askers = [threading.Thread(target=keep_asking) for _ in range(6)]
    for asker in askers:
        asker.start()
    try:
        wait_until(lambda: num_replicas() == 2, SCALE_S)
    finally:
        is_over.set()
        for asker in askers:
            asker.join()
    assert set(statuses) == {200}
    wait_until(lambda: num_replicas() == 1, SCALE_S)


@pytest.mark.slow
def test_the_first_request_brings_a_replica_and_is_told_so_meanwhile(url: str) -> None:
    deployments = serve.status().applications[APPLICATION].deployments
    assert sum(deployments["generator-idle"].replica_states.values()) == 0
    body = ask("idle", stream=True)
    with httpx.stream("POST", url + CHAT, json=body, timeout=PROCESS_S) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.status_code == 200
    told = [line for line in lines if line.startswith(":")]
    assert lines[: len(told)] == told == [": idle was not asked for in a while and is being loaded"] * len(told)
    assert len(told) >= 1
    assert lines[-1] == "data: [DONE]"
    assert '"finish_reason":"stop"' in lines[-2]


@pytest.mark.slow
def test_both_variants_of_a_canary_answer_and_are_compared(url: str) -> None:
    for number in range(12):
        answer = httpx.post(url + CHAT, json=ask("either", f"question {number}"), timeout=30).json()
        assert (answer["model"], answer["choices"][0]["message"]["content"]) == (
            "either",
            f"0 images. question {number}",
        )
    canary: dict[str, Any] = {}

    def requests() -> list[int]:
        canary.update(httpx.get(f"{url}/cluster/canaries", timeout=30).json()["canaries"][0])
        return [variant["requests"] for variant in canary["variants"]]

    wait_until(lambda: sum(requests()) == 12, 60)  # an ingress that does not answer in 2 s is left out
    assert all(requests())  # fixed texts, so a fixed share
    for variant in canary["variants"]:
        assert (variant["failed"], variant["total_ms"]["n"]) == (0, variant["requests"])
        assert 0 < variant["first_token_ms"]["p50"] <= variant["total_ms"]["p95"]


@pytest.mark.slow
def test_no_answer_is_lost_while_every_replica_is_replaced(url: str, smolvlm_bundle: Path) -> None:
    """The last test of this application: what is served after it is one model."""
    is_over = threading.Event()
    answers: list[str] = []

    def keep_asking() -> None:
        with httpx.Client(timeout=60) as client:
            while not is_over.is_set():
                answers.append(client.post(url + CHAT, json=ask("slow", "a " * 40, stream=True)).text)

    def replicas() -> set[str]:
        details = serve.context._get_global_client().get_serve_details()["applications"][APPLICATION]
        served = (details["deployments"][name] for name in ("generator-slow", "ingress"))
        return {replica["replica_id"] for each in served for replica in each["replicas"]}

    before = replicas()
    askers = [threading.Thread(target=keep_asking) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        slow = next(model for model in FAKES if model.name == "slow")
        one = {"num_cpus": 0.1, "max_replicas": 1}
        updated = cluster.application([slow], cluster_args(smolvlm_bundle, canaries=[], models={}, generator=one))
        serve.run(updated, name=APPLICATION)
        wait_until(lambda: not replicas() & before, PROCESS_S)
    finally:
        is_over.set()
        for asker in askers:
            asker.join()
    assert len(answers) > 3
    for answer in answers:
        assert answer.endswith("data: [DONE]\n\n"), answer[-300:]
        assert '"finish_reason":"stop"' in answer, answer[-300:]


DEPLOY = """
import sys, warnings
warnings.simplefilter("ignore")
from functools import partial
from pathlib import Path
from serving.cluster import deploy as command
from serving.cluster.application import ServedModel
from serving.fake import FakeBehaviour, FakeClient
from serving.protocol import ModelCard
from serving.settings import ServerSettings

card = ModelCard("slow", "image-text-to-text", "fake", {}, 0, 1000)
slow = ServedModel(card, partial(FakeClient, (card,), FakeBehaviour(token_s=0.1)))
real = command.served_models
command.served_models = lambda args: (*real(args), slow)
few = {"min_replicas": 1, "max_replicas": 1, "num_cpus": 0.1}
ray = {"ingress_num_cpus": 0.1, "embedder": few, "generator": few}
settings = ServerSettings.model_validate({"port": 0, "drain_timeout_s": 8, "ray": ray})
command.deploy([Path(sys.argv[1])], settings, lambda line: print(line, flush=True))
print("ended", flush=True)
"""


async def end_under_way(url: str, process: subprocess.Popen[str]) -> tuple[dict[str, httpx.Response], httpx.Response]:
    """Stop a server with short and endless requests under way; return their answers, and what a late one gets."""
    bodies = {
        f"{length} {kind}": ask("slow", "a " * words, stream=kind == "stream")
        for length, words in (("short", 30), ("endless", 490))
        for kind in ("stream", "whole")
    }
    async with httpx.AsyncClient(timeout=60) as client:
        asked = {name: asyncio.ensure_future(client.post(url + CHAT, json=body)) for name, body in bodies.items()}
        await asyncio.sleep(2)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(2)
        late = await client.post(url + CHAT, json=ask("slow"))
        return {name: await each for name, each in asked.items()}, late


@pytest.mark.slow
def test_deploy_serves_until_sigterm_drains_and_takes_everything_down(clip_bundle: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DEPLOY, str(clip_bundle)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("PocketVLM serves tiny-clip, slow at http://127.0.0.1:"), process.stderr.read()
            url = line.split(" at ")[1].split()[0]
            body = {"model": "tiny-clip", "input": ["a", "b"]}
            items = httpx.post(f"{url}/v1/embeddings", json=body, timeout=30).json()["data"]
            norms = [sum(x * x for x in item["embedding"]) for item in items]
            assert norms == pytest.approx([1, 1], abs=1e-5)  # float32
            answers, late = asyncio.run(end_under_way(url, process))
            out, log = process.communicate(timeout=START_S)
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert out.endswith("ended\n")
    for text in (out, log):
        assert "\033" not in text
        assert "infinite retries" not in text
    assert (late.status_code, late.json()["error"]["code"]) == (503, "engine_dead")
    assert answers["short whole"].json()["choices"][0]["finish_reason"] == "stop"
    assert answers["endless whole"].status_code == 503
    assert "stopped before the request was answered" in answers["endless whole"].json()["error"]["message"]
    for name, last in (("short stream", '"finish_reason":"stop"'), ("endless stream", '"code":"engine_dead"')):
        *_, event, done, end = answers[name].text.split("\n\n")
        assert (last in event, done, end) == (True, "data: [DONE]", ""), name
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
