"""The door of the application: who is let in where, and what a key may take."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import httpx
import pytest

from serving.access.keys import ApiKey, digest_of
from serving.access.settings import AccessSettings
from serving.api.app import create_app
from serving.fake import FakeClient
from serving.settings import ApiSettings, ServerSettings

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
PLAIN, ADMIN, OLD, GONE = (f"pvlm-{name}-0123456789" for name in ("plain", "admin", "old", "gone"))
PAST = datetime(2020, 1, 1, tzinfo=timezone.utc)


def key(text: str, name: str, **fields: Any) -> ApiKey:
    return ApiKey(name=name, sha256=digest_of(text.encode()), **fields)


KEYS = (
    key(PLAIN, "plain"),
    key(ADMIN, "admin", admin=True),
    key(OLD, "old", expires=PAST),
    key(GONE, "gone", revoked=PAST),
)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def soon(is_so: Callable[[], bool]) -> bool:
    """Return whether something comes to be so, however slow the machine is."""
    end_s = time.monotonic() + 20
    while not is_so():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def guarded(make_caller: Callable[..., Any]) -> Callable[..., Any]:
    """Make a caller of an application that asks for keys, with some limits of the plain one."""

    def make(clear_caches: Any = None, access: dict[str, Any] | None = None, **limits: int) -> Any:
        keys = (key(PLAIN, "plain", **limits), *KEYS[1:])
        return make_caller(clear_caches, access=AccessSettings(keys=keys, **(access or {})))

    return make


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, "no key came"),
        ({"Authorization": "Bearer "}, "no key came"),
        ({"Authorization": f"Basic {PLAIN}"}, "no key came"),
        (bearer("pvlm-wrong"), "the key is wrong"),
        (bearer(PLAIN + "x"), "the key is wrong"),
        (bearer(PLAIN[:-1]), "the key is wrong"),
        ({"x-api-key": "é".encode("latin-1")}, "the key is wrong"),
        (bearer(OLD), "the key old expired on 2020-01-01"),
        (bearer(GONE), "the key gone was revoked on 2020-01-01"),
        ({"x-api-key": GONE}, "the key gone was revoked"),
    ],
)
def test_a_request_without_a_key_that_is_taken_is_a_401_in_openais_form(
    guarded: Callable[..., Any], engine: FakeClient, ask: Callable[..., Any], headers: Any, told: str
) -> None:
    response = guarded().post(CHAT, ask(), headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (401, "invalid_api_key", "invalid_request_error")
    assert response.headers["www-authenticate"] == "Bearer"
    assert told in error["message"]
    assert not engine.generations


def test_anthropics_clients_get_a_401_in_their_form(guarded: Callable[..., Any]) -> None:
    response = guarded().post(MESSAGES, {}, headers={"x-api-key": "wrong"})
    assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")


@pytest.mark.parametrize(
    "headers", [bearer(PLAIN), {"authorization": f"bearer  {PLAIN} "}, {"x-api-key": PLAIN}, bearer(ADMIN)]
)
def test_a_key_is_taken_as_either_client_sends_it(
    guarded: Callable[..., Any], ask: Callable[..., Any], headers: dict[str, str]
) -> None:
    assert guarded().post(CHAT, ask(), headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/page/app.js", "/health/live", "/health/ready"])
def test_health_and_the_page_are_open(guarded: Callable[..., Any], path: str) -> None:
    assert guarded().get(path).status_code in (200, 303, 307)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/fake-vlm"),
        ("GET", "/version"),
        ("GET", "/metrics"),
        ("POST", "/tokenize"),
        ("POST", "/health/live"),
        ("GET", "/health/../v1/models"),
        ("GET", "/docs/"),
        ("POST", "/page/app.js"),
        ("GET", "/v1/status"),
        ("GET", "//v1/models"),
        ("OPTIONS", "/v1/models"),
        ("GET", "/nothing"),
    ],
)
def test_whatever_is_not_named_as_open_needs_a_key(guarded: Callable[..., Any], method: str, path: str) -> None:
    assert guarded().request(method, path).status_code == 401


def test_every_documented_route_but_the_open_ones_answers_401(guarded: Callable[..., Any]) -> None:
    api = guarded(clear_caches=lambda: None)
    document = api.get("/openapi.json").json()
    asked = {
        (path, method)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if "security" in operation
    }
    for path, method in asked:
        assert api.request(method.upper(), path).status_code == 401, (path, method)
        assert "401" in document["paths"][path][method]["responses"]
    assert set(document["paths"]) - {path for path, _ in asked} == {"/", "/health/live", "/health/ready"}
    assert set(document["components"]["securitySchemes"]) == {"bearer", "x-api-key"}


def test_metrics_are_open_where_a_setting_says_so(guarded: Callable[..., Any]) -> None:
    assert guarded().get("/metrics", headers=bearer(PLAIN)).status_code == 200
    assert guarded(access={"open_metrics": True}).get("/metrics").status_code == 200


def test_an_admins_call_needs_an_admins_key(guarded: Callable[..., Any]) -> None:
    cleared: list[int] = []
    api = guarded(clear_caches=lambda: cleared.append(1))
    path = "/v1/cache/clear"
    assert api.post(path, None).status_code == 401
    refused = api.post(path, None, headers=bearer(PLAIN))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_key_required")
    assert not cleared
    assert api.post(path, None, headers=bearer(ADMIN)).status_code == 200
    assert cleared == [1]


def test_a_prefix_of_a_proxy_changes_nothing_of_who_may_what(engine: FakeClient) -> None:
    """Routes are found without it, so the door must be too: else what it guards would have another name."""
    cleared: list[int] = []
    app = create_app(engine, ApiSettings(access=AccessSettings(keys=KEYS)), lambda: cleared.append(1))

    async def status(method: str, path: str, headers: dict[str, str]) -> int:
        transport = httpx.ASGITransport(app, root_path="/prefix")
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.request(method, path, headers=headers)).status_code

    async def statuses() -> list[int]:
        clear = "/prefix/v1/cache/clear"
        return [
            await status("GET", "/prefix/health/live", {}),
            await status("GET", "/prefix/v1/models", {}),
            await status("POST", clear, bearer(PLAIN)),
            await status("POST", clear, bearer(ADMIN)),
        ]

    assert asyncio.run(statuses()) == [200, 401, 403, 200]
    assert cleared == [1]


def test_requests_per_minute(guarded: Callable[..., Any], ask: Callable[..., Any]) -> None:
    api = guarded(requests_per_minute=2)
    answers = [api.post(CHAT, ask(), headers=bearer(PLAIN)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    assert answers[2].headers["x-ratelimit-limit-requests"] == "2"
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert 25 <= int(answers[2].headers["retry-after"]) <= 30
    assert api.get("/v1/models", headers=bearer(PLAIN)).status_code == 200  # lists cost nothing
    assert api.post(CHAT, ask(), headers=bearer(ADMIN)).status_code == 200  # other keys are not held


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_prompts_images_and_answers_are_taken(
    guarded: Callable[..., Any], ask: Callable[..., Any], image_part: Any, png: bytes, stream: bool
) -> None:
    api = guarded(tokens_per_minute=100)
    content = [image_part(png), {"type": "text", "text": "one two"}]
    usage = guarded().post(CHAT, ask(content), headers=bearer(PLAIN)).json()["usage"]
    assert usage["prompt_tokens_details"]["image_tokens"] > 0
    api.post(CHAT, ask(content, stream=stream), headers=bearer(PLAIN))
    left = int(api.post("/tokenize", {"prompt": ""}, headers=bearer(PLAIN)).headers["x-ratelimit-remaining-tokens"])
    # what comes back meanwhile is 1.7 a second
    assert 100 - usage["total_tokens"] <= left <= 100 - usage["total_tokens"] + 30


def test_tokens_of_embeddings_are_taken(guarded: Callable[..., Any]) -> None:
    api = guarded(tokens_per_minute=2)
    body = {"model": "fake-clip", "input": "a b c d e f g h"}
    assert api.post("/v1/embeddings", body, headers=bearer(PLAIN)).status_code == 200
    refused = api.post("/v1/embeddings", body, headers=bearer(PLAIN))
    assert (refused.status_code, refused.headers["x-ratelimit-remaining-tokens"]) == (429, "0")


def test_a_stream_is_under_way_until_its_client_leaves(
    serve_edge: Callable[..., Any], engine: FakeClient, ask: Callable[..., Any]
) -> None:
    engine.behaviour.token_s = 60.0
    access = AccessSettings(keys=(key(PLAIN, "plain", concurrent_requests=1),))
    url = serve_edge(engine, ServerSettings(api=ApiSettings(access=access))) + CHAT
    with httpx.stream("POST", url, json=ask(stream=True), headers=bearer(PLAIN), timeout=30) as stream:
        lines = stream.iter_lines()  # held: httpx closes a stream with its iterator
        assert next(lines).startswith("data: ")
        refused = httpx.post(url, json=ask(), headers=bearer(PLAIN))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    engine.behaviour.token_s = 0.0
    assert soon(lambda: httpx.post(url, json=ask(), headers=bearer(PLAIN)).status_code == 200)


def test_a_client_that_leaves_a_stream_has_paid_for_its_prompt(
    serve_edge: Callable[..., Any], engine: FakeClient, ask: Callable[..., Any]
) -> None:
    engine.behaviour.token_s = 60.0
    access = AccessSettings(keys=(key(PLAIN, "plain", tokens_per_minute=60),))
    url = serve_edge(engine, ServerSettings(api=ApiSettings(access=access)))
    with httpx.stream("POST", url + CHAT, json=ask("w " * 50, stream=True), headers=bearer(PLAIN)) as stream:
        lines = stream.iter_lines()
        assert any('"content":"0' in line for line in lines)
    answer = httpx.post(url + "/tokenize", json={"prompt": "a"}, headers=bearer(PLAIN))
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 40


def test_a_large_body_with_a_wrong_key_gets_its_401(serve_edge: Callable[..., Any], engine: FakeClient) -> None:
    """The body is not read by the application, and its client still gets to read the answer."""
    url = serve_edge(engine, ServerSettings(api=ApiSettings(access=AccessSettings(keys=KEYS))))
    answer = httpx.post(url + CHAT, content=b" " * (24 << 20), headers=bearer("wrong"), timeout=30)
    assert answer.status_code == 401


def test_a_page_of_another_origin_may_ask_where_it_is_listed(
    make_caller: Callable[..., Any], ask: Callable[..., Any]
) -> None:
    origin = "https://app.example.com"
    api = make_caller(access=AccessSettings(cors_origins=(origin,), keys=KEYS))
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    preflight["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-lang"
    allowed = api.request("OPTIONS", CHAT, headers=preflight)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, origin)
    assert "x-stainless-lang" in allowed.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in allowed.headers
    for headers, status in ((bearer(PLAIN), 200), ({}, 401)):  # a page can read why it was refused
        answer = api.post(CHAT, ask(), headers={**headers, "Origin": origin})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, origin)
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
    other = {**preflight, "Origin": "https://evil.example.com"}
    assert "access-control-allow-origin" not in api.request("OPTIONS", CHAT, headers=other).headers


def test_pages_of_other_origins_may_not_ask_by_default(api: Any, ask: Callable[..., Any]) -> None:
    answer = api.post(CHAT, ask(), headers={"Origin": "https://app.example.com"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST"}
    assert api.request("OPTIONS", CHAT, headers=preflight).status_code == 405


@pytest.mark.parametrize("origin", ["app.example.com", "https://app.example.com/", "https://a b", "null", "ftp://x"])
def test_an_origin_is_scheme_host_and_port(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        AccessSettings(cors_origins=(origin,))


def test_no_key_is_logged_told_or_counted(
    serve_edge: Callable[..., Any],
    engine: FakeClient,
    ask: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """At the loudest level, whatever happens to a request: refused, answered, failed, or no HTTP at all."""
    caplog.set_level(logging.DEBUG)
    access = AccessSettings(keys=KEYS)
    url = serve_edge(engine, ServerSettings(log_level="debug", api=ApiSettings(access=access)))
    secret = "pvlm-a-wrong-secret-0123"
    told = []
    for text in (PLAIN, OLD, GONE, secret):
        for headers in (bearer(text), {"x-api-key": text}):
            told.append(httpx.post(url + CHAT, json=ask(), headers=headers))
            told.append(httpx.post(url + CHAT, content=b"{", headers=headers))
            told.append(httpx.post(url + MESSAGES, json={"unknown": 1}, headers=headers))
            told.append(httpx.get(url + "/nothing", headers=headers))
    engine.behaviour.failure = RuntimeError("a fault")
    told.append(httpx.post(url + CHAT, json=ask(), headers=bearer(PLAIN)))
    told.append(httpx.get(url + "/metrics", headers=bearer(PLAIN)))
    written = caplog.text + "".join(capfd.readouterr())
    assert "key=plain" in written
    everything = written + "".join(f"{answer.headers}{answer.text}" for answer in told)
    for text in (PLAIN, ADMIN, OLD, GONE, secret, *(each.sha256 for each in KEYS)):
        assert text not in everything
    assert access.keys[0].sha256 not in repr(access)
