"""What an ingress replica answers itself; Ray's context and the other replicas are made up."""

from __future__ import annotations

import asyncio
import warnings
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import PydanticDeprecatedSince20

from bundle.errors import SettingsError
from serving.access.keys import ApiKey, digest_of
from serving.access.settings import AccessSettings
from serving.cluster.canary import VariantFigures
from serving.fake import FAKE_VLM
from serving.ray_settings import Canary, LiveSettings
from serving.settings import ApiSettings
from serving.tracing_settings import TracingSettings

with warnings.catch_warnings():
    # Ray 2.60 declares its own settings in a way that pydantic will drop.
    warnings.simplefilter("ignore", PydanticDeprecatedSince20)
    from ray import serve

    from serving.cluster.ingress import Ingress, IngressPlan, PlannedModel

NAMES = ("old", "new")


def canaries(old: int, new: int) -> dict[str, Any]:
    variants = [{"model": name, "weight": weight} for name, weight in zip(NAMES, (old, new), strict=True)]
    return LiveSettings(canaries=(Canary.model_validate({"name": "m", "variants": variants}),)).model_dump(mode="json")


class Handle:
    """Of a deployment: it answers a broadcast as another ingress replica would."""

    def options(self, **_: Any) -> Handle:
        return self

    def broadcast(self, method: str) -> Any:
        if method == "exposition":
            return SimpleNamespace(results_async=self.expositions)
        assert method == "canary_figures"
        seen = VariantFigures(num_requests=3, num_failed=1)
        seen.total_s.extend((0.1, 0.2))

        async def answers(**_: Any) -> list[Any]:
            return [("other", {"m": {"new": seen}}), TimeoutError("gone")]

        return SimpleNamespace(results_async=answers)

    async def expositions(self, **_: Any) -> list[Any]:
        told = "# HELP of_others_total x\n# TYPE of_others_total counter\nof_others_total 3.0\n"
        return [("other", told), TimeoutError("gone")]


@pytest.fixture
def ingress(monkeypatch: pytest.MonkeyPatch) -> Ingress:
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="own"), deployment="ingress", app_name="a")
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(serve, "get_deployment_handle", lambda *_: Handle())
    from dataclasses import replace

    models = tuple(PlannedModel(replace(FAKE_VLM, name=name), f"generator-{name}") for name in NAMES)
    return Ingress(IngressPlan(models, ApiSettings(), 1.0, TracingSettings()), Handle(), Handle())


def get(ingress: Ingress, path: str) -> Any:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(ingress.__serve_build_asgi_app__(), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(ask()).json()


def test_canaries_are_told_with_what_all_ingress_replicas_saw(ingress: Ingress) -> None:
    ingress.reconfigure(canaries(90, 10))
    (told,) = get(ingress, "/cluster/canaries")["canaries"]
    old, new = told["variants"]
    assert (told["name"], old["weight"], new["weight"]) == ("m", 90, 10)
    assert (old["requests"], new["requests"], new["failed"], new["total_ms"]["n"]) == (0, 3, 1, 2)
    assert new["gates"][0]["name"] == "clear_agreement"


def test_weights_change_while_requests_run_and_wrong_ones_do_not(ingress: Ingress) -> None:
    ingress.reconfigure(canaries(90, 10))
    ingress.reconfigure(canaries(50, 50))
    with pytest.raises(SettingsError, match="sum to 60"):
        ingress.reconfigure({"canaries": [{"name": "m", "variants": canaries_of(50, 10)}]})
    (told,) = get(ingress, "/cluster/canaries")["canaries"]
    assert [variant["weight"] for variant in told["variants"]] == [50, 50]
    ingress.reconfigure({})
    assert get(ingress, "/cluster/canaries") == {"canaries": []}


def canaries_of(old: int, new: int) -> list[dict[str, Any]]:
    return [{"model": "old", "weight": old}, {"model": "new", "weight": new}]


def test_a_canary_is_a_model_among_the_others(ingress: Ingress) -> None:
    ingress.reconfigure(canaries(10, 90))
    assert [card["id"] for card in get(ingress, "/v1/models")["data"]] == ["old", "new", "m"]


def test_keys_hold_for_all_that_an_ingress_answers_metrics_and_canaries_too(ingress: Ingress) -> None:
    kept = ApiKey(name="ci", sha256=digest_of(b"pvlm-0123456789abcdef"))
    ingress._api = ApiSettings(access=AccessSettings(keys=(kept,)))

    async def statuses(headers: dict[str, str]) -> dict[str, int]:
        transport = httpx.ASGITransport(ingress.__serve_build_asgi_app__(), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            paths = ("/metrics", "/cluster/canaries", "/v1/models", "/health/live")
            return {path: (await client.get(path)).status_code for path in paths}

    closed = {"/metrics": 401, "/cluster/canaries": 401, "/v1/models": 401, "/health/live": 200}
    assert asyncio.run(statuses({})) == closed
    assert set(asyncio.run(statuses({"x-api-key": "pvlm-0123456789abcdef"})).values()) == {200}


def test_an_ingress_tells_its_own_metrics_and_those_of_the_others_that_answer(ingress: Ingress) -> None:
    async def ask() -> str:
        transport = httpx.ASGITransport(ingress.__serve_build_asgi_app__(), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get("/metrics")).text

    told = asyncio.run(ask())
    assert "pocketvlm:num_replicas" in told
    assert 'of_others_total{ingress="other"} 3.0' in told
