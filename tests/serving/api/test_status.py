from __future__ import annotations

import asyncio
import html
import json
import re
import shlex
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from bundle.errors import EngineDeadError
from serving.api.app import create_app
from serving.api.docs import examples
from serving.api.metrics import Metrics
from serving.fake import FAKE_VLM, TOKENS_PER_IMAGE, FakeClient
from serving.protocol import FinishedEvent, GenerateEvent, Health, ModelCard, Timings, TokenEvent, Usage
from serving.settings import ApiSettings

CHAT = "/v1/chat/completions"
EXAMPLES = list(examples(()))


def samples(api: Any) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return every sample of the metrics page by name and labels."""
    families = text_string_to_metric_families(api.get("/metrics").text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(api: Any, name: str, **labels: str) -> float:
    return samples(api).get((f"pocketvlm:{name}", frozenset(labels.items())), 0.0)


def test_models_are_listed_with_task_schemes_bytes_and_gates(api: Any) -> None:
    listing = api.get("/v1/models").json()
    assert listing["object"] == "list"
    assert [(card["id"], card["task"]) for card in listing["data"]] == [
        ("fake-vlm", "image-text-to-text"),
        ("fake-clip", "dual-encoder"),
    ]
    card = api.get("/v1/models/fake-vlm").json()
    assert card == listing["data"][0]
    assert (card["schemes"], card["weight_bytes"], card["context_tokens"]) == ({"decoder": "int4"}, 1_000_000, 64)
    assert card["gates"][0]["name"] == "clear_agreement"
    assert card["unmeasured"] == [{"name": "image_sensitivity", "reason": "no sample has an image"}]
    assert [card["gated"] for card in listing["data"]] == [True, None]


@pytest.mark.parametrize(
    ("card", "wanted"),
    [
        (
            ModelCard("one", "text-embedding", "fake", {"text_encoder": "fp32"}, 1, None, takes_images=False),
            {"embeddings", "rerank"},
        ),
        (replace(FAKE_VLM, name="one", takes_one_message=True), {"chat", "structured_output", "images"}),
    ],
    ids=["embeds texts alone", "answers one message"],
)
def test_a_card_offers_no_more_than_the_model_takes(
    make_caller: Callable[..., Any],
    engine: FakeClient,
    monkeypatch: pytest.MonkeyPatch,
    card: ModelCard,
    wanted: set[str],
) -> None:
    async def models() -> list[ModelCard]:
        return [card]

    monkeypatch.setattr(engine, "models", models)
    told = make_caller().get("/v1/models/one").json()
    can = {name for name, is_so in told["capabilities"].items() if is_so}
    assert (told["task"], can, bool(told["video_layouts"])) == (card.task, wanted, False)


def test_an_unknown_model_is_a_404_that_lists_the_known(api: Any) -> None:
    response = api.get("/v1/models/some/other")
    assert response.status_code == 404
    assert "fake-vlm, fake-clip" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("health", "live", "ready"),
    [
        (Health(is_ready=True), 200, 200),
        (Health(is_ready=False, reason="models are loading"), 200, 503),
        (Health(is_ready=False, reason="worker died", is_alive=False), 503, 503),
    ],
)
def test_probes_tell_loading_from_dead(api: Any, engine: FakeClient, health: Health, live: int, ready: int) -> None:
    engine.behaviour.health = health
    answers = [api.get(f"/health/{probe}") for probe in ("live", "ready")]
    assert [answer.status_code for answer in answers] == [live, ready]
    assert all(answer.json().get("reason", health.reason) == health.reason for answer in answers)


def test_a_request_while_models_load_is_a_503_and_no_404(
    ask: Callable[..., Any], make_caller: Any, engine: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none_yet() -> list[ModelCard]:
        return []

    monkeypatch.setattr(engine, "models", none_yet)
    engine.behaviour.health = Health(is_ready=False, reason="models are loading", is_starting=True)
    response = make_caller().post(CHAT, ask())
    assert (response.status_code, response.json()["error"]["code"]) == (503, "starting")
    assert "models are loading" in response.json()["error"]["message"]


def test_time_between_tokens_is_the_engines_however_slowly_a_client_reads() -> None:
    async def tokens() -> AsyncIterator[GenerateEvent]:
        for at in range(5):
            yield TokenEvent("x", (at,), 100.0 + at * 0.003)
        yield FinishedEvent("stop", Usage(1, 5), Timings())

    async def read(metrics: Metrics) -> None:
        async for _ in metrics.observed(tokens(), "m"):
            await asyncio.sleep(0.02)

    metrics = Metrics()
    asyncio.run(read(metrics))
    families = text_string_to_metric_families(metrics.exposition().decode())
    found = {sample.name: sample.value for family in families for sample in family.samples}
    assert found["pocketvlm:inter_token_latency_seconds_count"] == 4
    assert found["pocketvlm:inter_token_latency_seconds_sum"] == pytest.approx(0.012)


def test_a_chat_is_counted_and_timed(api: Any, ask: Callable[..., Any]) -> None:
    for stream in (False, True):
        api.post(CHAT, ask("a b c", stream=stream))
    model = {"model_name": "fake-vlm"}
    assert value(api, "prompt_tokens_total", **model) == 6
    assert value(api, "generation_tokens_total", **model) == 10
    assert value(api, "time_to_first_token_seconds_count", **model) == 2
    assert value(api, "inter_token_latency_seconds_count", **model) == 8
    assert value(api, "e2e_request_latency_seconds_count", **model) == 2
    assert value(api, "request_success_total", **model, finished_reason="stop") == 2


def test_embeddings_and_classifications_are_counted(api: Any, png: bytes, image_part: Any) -> None:
    api.post("/v1/embeddings", {"model": "fake-clip", "input": "a b"})
    api.post("/v1/classify", {"model": "fake-clip", "images": [image_part(png)], "labels": ["a"]})
    assert value(api, "prompt_tokens_total", model_name="fake-clip") == 3
    assert value(api, "e2e_request_latency_seconds_count", model_name="fake-clip") == 2


def test_errors_are_counted_by_type_and_not_as_success(api: Any, engine: FakeClient, ask: Callable[..., Any]) -> None:
    engine.behaviour.failure, engine.behaviour.failure_after_tokens = EngineDeadError("died"), 1
    api.post(CHAT, ask())
    api.post(CHAT, ask(stream=True))
    assert value(api, "request_errors_total", model_name="fake-vlm", error_type="engine_dead") == 2
    assert sum(count for (name, _), count in samples(api).items() if "request_success_total" in name) == 0


def test_labels_never_take_a_name_that_a_caller_invents(api: Any, ask: Callable[..., Any]) -> None:
    api.post(CHAT, ask(model="invented"))
    assert "invented" not in api.get("/metrics").text
    assert value(api, "request_errors_total", model_name="", error_type="model_not_found") == 1


def test_the_engines_gauges_are_shown(api: Any) -> None:
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert ("pocketvlm:" + name, frozenset({("model_name", "fake-vlm"), ("engine", "0")})) in samples(api)


def test_two_applications_count_apart_and_leave_the_global_registry_alone(
    ask: Callable[..., Any], make_caller: Any
) -> None:
    first, second = make_caller(), make_caller()
    first.post(CHAT, ask("a"))
    assert value(first, "prompt_tokens_total", model_name="fake-vlm") == 1
    assert value(second, "prompt_tokens_total", model_name="fake-vlm") == 0
    assert not any("pocketvlm" in name for name in REGISTRY._names_to_collectors)


def test_the_schema_page_lists_every_route(engine: FakeClient) -> None:
    paths = create_app(engine, ApiSettings()).openapi()["paths"]
    assert {CHAT, "/v1/embeddings", "/v1/classify", "/v1/models", "/health/ready", "/metrics"} <= set(paths)


def test_the_docs_page_loads_nothing_from_elsewhere_and_shows_each_route(api: Any) -> None:
    page = api.get("/docs").text
    assert "://" not in page.replace("http://test", "")
    assert all(f"<code>POST {path}</code>" in page for path in EXAMPLES)
    assert api.request("HEAD", "/docs").status_code == 200
    assert api.get("/redoc").status_code == 404


@pytest.mark.browser
@pytest.mark.parametrize("width_px", [400, 1280])
def test_the_docs_page_fits_a_phone_and_a_desk(api: Any, tmp_path: Path, look: Any, width_px: int) -> None:
    (tmp_path / "docs.html").write_text(api.get("/docs").text, encoding="utf-8")
    seen = look(tmp_path / "docs.html", width_px)
    assert seen.page_px <= width_px
    assert len(seen.requests) == 1


def pasted(page: str) -> dict[str, list[Any]]:
    """The bodies of the page's commands by path, as a shell reads them."""
    commands = [shlex.split(html.unescape(text)) for text in re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)]
    bodies: dict[str, list[Any]] = {}
    for words in commands:
        bodies.setdefault(words[2].removeprefix("http://test"), []).append(json.loads(words[-1]))
    return bodies


@pytest.mark.parametrize("path", EXAMPLES)
def test_the_documented_commands_can_be_pasted(api: Any, path: str) -> None:
    for body in pasted(api.get("/docs").text)[path]:
        assert api.post(path, body).status_code == 200


def test_the_documents_video_is_looked_at_whole(api: Any) -> None:
    _, video, *_ = pasted(api.get("/docs").text)[CHAT]
    details = api.post(CHAT, {**video, "stream": False}).json()["usage"]["prompt_tokens_details"]
    assert details["image_tokens"] == 2 * TOKENS_PER_IMAGE


def test_the_docs_of_a_server_without_models_name_a_place_for_them(
    make_caller: Any, engine: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none_yet() -> list[ModelCard]:
        return []

    monkeypatch.setattr(engine, "models", none_yet)
    assert pasted(make_caller().get("/docs").text)["/v1/classify"][0]["model"] == "MODEL"


def test_the_root_tells_a_program_where_things_are(api: Any) -> None:
    told = api.get("/").json()
    assert all(api.get(told[place]).status_code == 200 for place in ("models", "docs", "openapi"))
    assert api.request("HEAD", "/").status_code == 200


def test_the_status_tells_every_engine_of_every_model(api: Any, engine: FakeClient) -> None:
    told = api.get("/v1/status").json()
    assert (told["server"], told["is_ready"]) == ("pocketvlm", True)
    assert [model["id"] for model in told["models"]] == ["fake-vlm", "fake-clip"]
    (fake,) = told["models"][0]["engines"].values()
    assert fake["gauges"]["num_requests_running"] == 0
    assert fake["slots"] == fake["waiting"] == []
    engine.behaviour.health = Health(is_ready=False, reason="worker died")
    assert api.get("/v1/status").json()["reason"] == "worker died"
