"""Answers of a server that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import asdict, fields
from typing import Any

import httpx

from bundle.errors import EngineDeadError, ModelNotFoundError, OverloadedError, ParameterError, PocketVLMError
from serving.chat.answerer import Took
from serving.chat.talk import Talk
from serving.protocol import Timings, Usage

_CONNECT_S = 10.0
_SILENCE_S = 600.0
"""Between two pieces, and before the first: a long prompt on a small machine takes minutes."""
_MOST_TRIES = 5
_LONGEST_WAIT_S = 30.0
_SHOWN_CHARACTERS = 300
_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "seed")


class RemoteAnswerer:
    """A server's model.

    Args:
        url: Of the server, with `/v1` or without.
        model: Its name; empty: the first that chats.
        key: For the header `Authorization`; empty: none is sent.

    Raises:
        ParameterError: The URL is none.
    """

    def __init__(self, url: str, model: str = "", key: str = "") -> None:
        base = url.rstrip("/").removesuffix("/v1") + "/v1/"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._client = httpx.AsyncClient(
                base_url=base, headers=headers, timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S)
            )
        except httpx.InvalidURL as error:
            raise ParameterError(f"{url} is no address of a server: {error}") from error
        self._url = url
        self.name = model

    async def start(self) -> None:
        """Find a model that chats, unless one was named.

        Raises:
            PocketVLMError: There is none, or the server does not answer.
        """
        if self.name:
            return
        response = await self._sent(self._client.build_request("GET", "models"))
        try:
            cards = json.loads(await response.aread())["data"]
            self.name = str(next(card["id"] for card in cards if _chats(card)))
        except StopIteration:
            raise ModelNotFoundError(f"{self._url} serves no model that chats") from None
        except (ValueError, KeyError, TypeError) as error:
            raise EngineDeadError(f"{self._url}/v1/models is no list of models; is this the right address?") from error
        except httpx.HTTPError as error:
            raise EngineDeadError(f"{self._url} broke off in the list of its models ({_reason(error)})") from error
        finally:
            await response.aclose()

    async def answer(self, talk: Talk, question: str) -> AsyncGenerator[str | Took, None]:
        """Yield the answer's pieces, then what it took; a busy server is asked again a few times.

        Raises:
            PocketVLMError: The server refuses the question, fails, or is gone.
        """
        body = {"model": self.name, "messages": talk.messages(question), **_fields(talk)}
        started_s = time.perf_counter()
        response = await self._sent(self._client.build_request("POST", "chat/completions", json=body))
        reading = _Reading(started_s)
        try:
            async for line in _lines(response):
                if line.startswith("data:") and (text := reading.take(line[5:].strip())):
                    yield text
        except httpx.HTTPError as error:
            raise EngineDeadError(f"{self._url} went away in the middle of the answer ({_reason(error)})") from error
        finally:
            await response.aclose()
        if not reading.is_whole:
            raise EngineDeadError(f"{self._url} broke off in the middle of the answer")
        yield reading.took()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _sent(self, request: httpx.Request) -> httpx.Response:
        """Return an answer that began well; its body is not read.

        Raises:
            PocketVLMError: It did not.
        """
        tries = 0
        while True:
            tries += 1
            try:
                response = await self._client.send(request, stream=True)
            except httpx.HTTPError as error:
                raise EngineDeadError(f"{self._url} does not answer ({_reason(error)})") from error
            if response.is_success:
                return response
            refusal, wait_s = await self._refusal(response)
            if not isinstance(refusal, OverloadedError) or tries == _MOST_TRIES:
                raise refusal
            await asyncio.sleep(wait_s)

    async def _refusal(self, response: httpx.Response) -> tuple[PocketVLMError, float]:
        """Return the error that an answer stands for, and how long to wait before it is asked again."""
        text = (await response.aread()).decode(errors="replace")
        await response.aclose()
        reason = _message(text) or f"it answered {response.status_code}"
        if response.status_code in (401, 403):
            held = "this one is not taken" if "authorization" in self._client.headers else "none was given"
            told = f"{self._url} wants an API key, and {held}: {reason}"
            return ParameterError(f"{told}. Put it into the variable POCKETVLM_KEY, or give --key."), 0.0
        if response.status_code == 429:
            wait_s = response.headers.get("retry-after", "1")
            return OverloadedError(reason), min(float(wait_s) if wait_s.isdecimal() else 1.0, _LONGEST_WAIT_S)
        if response.status_code in (502, 503, 504):
            return EngineDeadError(reason), 0.0
        return ParameterError(reason), 0.0


def _chats(card: dict[str, Any]) -> bool:
    """Say whether a model chats; what other servers tell of it, if anything, has forms of its own."""
    told = dict(card).get("capabilities")
    return bool(told.get("chat", True)) if isinstance(told, dict) else True


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """Yield a body's lines; httpx's own end at U+2028 and its like too, which JSON writes as they are."""
    begun = ""
    async for text in response.aiter_text():
        *whole, begun = (begun + text).split("\n")
        for line in whole:
            yield line.removesuffix("\r")
    yield begun


class _Reading:
    """A stream as it is read."""

    def __init__(self, started_s: float) -> None:
        self._started_s = started_s
        self._first_s: float | None = None
        self._end: dict[str, Any] = {}
        self._reason = ""
        self.is_whole = False

    def take(self, data: str) -> str:
        """Return the text of an event.

        Raises:
            EngineDeadError: The event says that the answer failed, or is none.
        """
        if data == "[DONE]":
            self.is_whole = True
            return ""
        try:
            event = json.loads(data)
        except ValueError as error:
            raise EngineDeadError(f"the server sent what is no event: {data[:_SHOWN_CHARACTERS]!r}") from error
        if "error" in event:
            raise EngineDeadError(_message(data) or "the answer failed")
        self._end |= {name: event[name] for name in ("usage", "timings") if event.get(name)}
        choice = (event.get("choices") or [{}])[0]
        self._reason = choice.get("finish_reason") or self._reason
        text = (choice.get("delta") or {}).get("content") or ""
        if text and self._first_s is None:
            self._first_s = time.perf_counter() - self._started_s
        return str(text)

    def took(self) -> Took:
        """Return what the answer took: times as they were seen here, where the server tells none."""
        total_s = time.perf_counter() - self._started_s
        seen = {"first_token_s": self._first_s or total_s, "total_s": total_s}
        return Took(
            _usage(self._end.get("usage")), Timings(**_known(Timings, self._end.get("timings") or seen)), self._reason
        )


def _fields(talk: Talk) -> dict[str, Any]:
    """Return what the user chose, and that the stream shall end with its counts."""
    choices = talk.choices
    chosen = {name: value for name, value in asdict(choices).items() if name in _SAMPLING and value is not None}
    if choices.vision and talk.has_pictures:
        chosen["vision"] = dict(zip(("method", "keep"), choices.vision, strict=True))
    if choices.kv:
        chosen["kv"] = dict(zip(("policy", "budget"), choices.kv, strict=True))
    return {**chosen, "stream": True, "stream_options": {"include_usage": True}}


def _usage(told: dict[str, Any] | None) -> Usage | None:
    if told is None or not isinstance(told.get("prompt_tokens"), int):
        return None
    details = told.get("prompt_tokens_details") or {}
    return Usage(**_known(Usage, {"completion_tokens": 0, **details, **told}))


def _known(kind: type[Any], told: dict[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in told.items() if name in names and isinstance(value, (int, float))}


def _message(text: str) -> str:
    """Return the words of an error's body, whoever wrote it; empty where it has none."""
    try:
        told = json.loads(text)
    except ValueError:
        return ""
    error = told.get("error", told) if isinstance(told, dict) else {}
    words = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return str(words)[:_SHOWN_CHARACTERS] if words else ""


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
