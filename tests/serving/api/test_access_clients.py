"""Keys and limits, as the real clients of OpenAI and Anthropic see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from serving.access.keys import ApiKey, digest_of
from serving.access.settings import AccessSettings
from serving.fake import FakeClient
from serving.settings import ApiSettings, ServerSettings

KEY = "pvlm-0123456789abcdef"
ASKED: Any = [{"role": "user", "content": "one two"}]


@pytest.fixture
def url(serve_edge: Callable[..., Any], engine: FakeClient) -> str:
    kept = ApiKey(name="ci", sha256=digest_of(KEY.encode()), requests_per_minute=1)
    return serve_edge(engine, ServerSettings(api=ApiSettings(access=AccessSettings(keys=(kept,)))))


def test_openais_client(url: str) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed: it comes with [dev]")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError, match="the key is wrong"):
            client.chat.completions.create(model="fake-vlm", messages=ASKED)
        with pytest.raises(openai.AuthenticationError, match="the key is wrong"):
            client.models.list()
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(model="fake-vlm", messages=ASKED)
        assert raw.parse().choices[0].message.content == "0 images. one two"
        assert raw.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError, match="1 requests a minute") as refused:
            client.chat.completions.create(model="fake-vlm", messages=ASKED)
        assert 50 <= int(refused.value.response.headers["retry-after"]) <= 60
        assert refused.value.code == "rate_limit_exceeded"


def test_anthropics_client(url: str) -> None:
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed: it comes with [dev]")
    asked: dict[str, Any] = {"model": "fake-vlm", "max_tokens": 9, "messages": ASKED}
    wrong = anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0)
    with wrong as client, pytest.raises(anthropic.AuthenticationError, match="the key is wrong"):
        client.messages.create(**asked)
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0) as client:
        assert client.messages.create(**asked).content[0].text == "0 images. one two"
        with pytest.raises(anthropic.RateLimitError, match="1 requests a minute") as refused:
            client.messages.create(**asked)
        assert 50 <= int(refused.value.response.headers["retry-after"]) <= 60
    wrong = anthropic.Anthropic(base_url=url, auth_token="wrong", max_retries=0)
    with wrong as client, pytest.raises(anthropic.AuthenticationError):
        client.messages.create(**asked)
