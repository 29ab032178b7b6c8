"""An OpenAI-compatible endpoint, asked as an evaluation or a search asks."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx
import numpy as np

from bundle.errors import MachineError, SettingsError
from bundle.manifest import ANSWERING_TASKS, EMBEDDING_TASKS, RANKING_TASKS, InputType
from quant.evaluation.asking import Clip, Part, RefusedError, Said, Scores, Vectors, many_vectors

_MEDIA_TYPES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
}
_REFUSALS = (400, 413, 422)
"""What an endpoint answers where one question cannot be served, and another can."""
_CROSS_ENCODER = "cross-encoder"
_BUSY = (429, 500, 502, 503, 504)
_MOST_TRIES = 6
_LONGEST_WAIT_S = 30.0
_SHOWN_CHARACTERS = 300
_MODELS_TIMEOUT_S = 30.0


class EndpointRespondent:
    """A model behind an OpenAI-compatible API; `async with` finds it out and closes the connections.

    Args:
        url: Up to and without `/chat/completions`; `/v1` is put behind an address alone.
        model: Its name there; None: the only one.
        key: Sent as a bearer token; None: nothing.
        embeds: Whether it makes vectors; None: as `/v1/models` says, which PocketVLM's own does, else it answers.
        timeout_s: Of one question.
        transport: In the place of the network.

    Raises:
        SettingsError: The URL is none.
    """

    template = "a photo of a {}."
    """CLIP's own, for an endpoint does not say which is the model's."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key: str | None = None,
        *,
        embeds: bool | None = None,
        timeout_s: float = 600.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        try:
            parts = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise SettingsError(f"{url} is no URL of an endpoint: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.host:
            raise SettingsError(f"{url} is no URL of an endpoint; write it like http://127.0.0.1:8000/v1")
        self.url = url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"
        self._model, self._embeds, self._timeout_s = model, embeds, timeout_s
        self._task = ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(headers=headers, timeout=timeout_s, transport=transport)

    async def __aenter__(self) -> EndpointRespondent:
        try:
            await self._find_out()
        except BaseException:
            await self._http.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    @property
    def name(self) -> str:
        """The model's name there."""
        return self._model or ""

    @property
    def embeds(self) -> bool:
        """Whether it makes vectors."""
        return bool(self._embeds)

    @property
    def answers(self) -> bool:
        """Whether it makes answers; a PocketVLM has models that do both."""
        return self._task in ANSWERING_TASKS if self._task else not self._embeds

    @property
    def ranks(self) -> bool:
        """Whether it makes vectors, or is of a PocketVLM and reads two inputs together."""
        return self.embeds or self._task in RANKING_TASKS

    @property
    def identity(self) -> str:
        """What tells its vectors from another model's: its address and name, for no more is known."""
        return f"{self.url} {self.name}"

    async def _find_out(self) -> None:
        """Ask which models there are, where the caller left that open."""
        if self._model is not None and self._embeds is not None:
            return
        try:
            listed = (await self._sent("GET", "/models", None, _MODELS_TIMEOUT_S)).get("data", [])
        except RefusedError as error:
            raise MachineError(f"{self.url}/models: {error}") from error
        cards = {str(card.get("id")): card for card in listed if isinstance(card, dict)}
        if self._model is None:
            whole = [name for name, card in cards.items() if not card.get("parent")]  # others are adapters of them
            if len(whole) != 1:
                raise SettingsError(f"{self.url} has the models {', '.join(cards) or 'none'}; name one with --name")
            self._model = whole[0]
        if self._embeds is None:
            self._task = str(cards.get(self._model, {}).get("task", ""))
            self._embeds = self._task in EMBEDDING_TASKS

    async def answer(self, conversation: Sequence[Said], max_tokens: int) -> str:
        """Return the greedy answer.

        Raises:
            RefusedError: The endpoint does not take this one.
            MachineError: It cannot be reached, or answers otherwise than the API says.
        """
        messages = [{"role": said.role, "content": _content(said)} for said in conversation]
        body = {"model": self.name, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        answered = await self._sent("POST", "/chat/completions", body, self._timeout_s)
        try:
            return answered["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError) as error:
            raise MachineError(f"{self.url}/chat/completions answered without choices: {answered!r:.300}") from error

    async def scores(self, query: str | bytes, documents: Sequence[str | bytes]) -> Scores:
        """Return [n] how near each document is to the query: a PocketVLM is asked, of others vectors are compared.

        Raises:
            RefusedError: The endpoint does not take one of them.
            MachineError: It cannot be reached, or answers otherwise than the API says.
        """
        if not self._task:
            vectors = await self.embed([query, *documents])
            return np.asarray(vectors[1:] @ vectors[0], np.float64)
        body: dict[str, Any] = {
            "model": self.name,
            "query": query if isinstance(query, str) else _image(query),
            "documents": [each if isinstance(each, str) else _image(each) for each in documents],
            "return_documents": False,
        }
        if self._task == _CROSS_ENCODER:
            body["truncate_prompt_tokens"] = -1
        answered = await self._sent("POST", "/rerank", body, self._timeout_s)
        try:
            found = {int(each["index"]): float(each["relevance_score"]) for each in answered["results"]}
            return np.array([found[place] for place in range(len(documents))])
        except (KeyError, TypeError, ValueError) as error:
            raise MachineError(f"{self.url}/rerank answered without scores: {answered!r:.300}") from error

    async def embed(self, inputs: Sequence[str | bytes], kind: InputType | None = None) -> Vectors:
        """Return [n, E] float32, one row of unit length for each text and encoded image.

        Raises:
            RefusedError: The endpoint does not take one of them.
            SettingsError: The model keeps a vector for every token.
            MachineError: It cannot be reached, or answers otherwise than the API says.
        """
        parts = [each if isinstance(each, str) else _image(each) for each in inputs]
        said = {"input_type": kind} if kind is not None and self._task else {}  # others would refuse the field
        body = {"model": self.name, "input": parts, **said}
        answered = await self._sent("POST", "/embeddings", body, self._timeout_s)
        try:
            if any("embeddings" in each for each in answered["data"]):
                raise SettingsError(many_vectors(self.name))
            rows = [each["embedding"] for each in sorted(answered["data"], key=lambda each: int(each["index"]))]
            if len(rows) != len(inputs):
                raise ValueError(f"{len(rows)} vectors of {len(inputs)} inputs")
            vectors = np.array(rows, np.float32)
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        except (KeyError, TypeError, ValueError) as error:
            raise MachineError(f"{self.url}/embeddings answered without vectors: {answered!r:.300}") from error
        return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)

    async def _sent(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> dict[str, Any]:
        """Return the answer to a request, asking again where the endpoint is busy for a while."""
        for number in range(_MOST_TRIES):
            response = await self._try(method, path, body, timeout_s)
            if response.status_code not in _BUSY or number == _MOST_TRIES - 1:
                return self._judged(response, path)
            await asyncio.sleep(_wait_s(response, number))
        raise MachineError(f"{self.url}{path} was busy {_MOST_TRIES} times; ask fewer questions at once")

    async def _try(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> httpx.Response:
        try:
            return await self._http.request(method, f"{self.url}{path}", json=body, timeout=timeout_s)
        except httpx.TimeoutException as error:
            raise MachineError(f"{self.url}{path} did not answer within {timeout_s:g} s") from error
        except httpx.HTTPError as error:
            raise MachineError(f"{self.url}{path} cannot be reached: {error or type(error).__name__}") from error

    def _judged(self, response: httpx.Response, path: str) -> dict[str, Any]:
        if response.status_code in _REFUSALS:
            raise RefusedError(f"{response.status_code}: {_reason(response)}")
        if response.status_code != httpx.codes.OK:
            hint = "; set the key's environment variable (--key-env)" if response.status_code in (401, 403) else ""
            raise MachineError(f"{self.url}{path} answered {response.status_code}: {_reason(response)}{hint}")
        try:
            answered = response.json()
        except ValueError as error:
            raise MachineError(f"{self.url}{path} answered no JSON: {response.text[:_SHOWN_CHARACTERS]!r}") from error
        if not isinstance(answered, dict):
            raise MachineError(f"{self.url}{path} answered no JSON object: {response.text[:_SHOWN_CHARACTERS]!r}")
        return answered


def _wait_s(response: httpx.Response, number: int) -> float:
    try:
        asked = float(response.headers.get("Retry-After", ""))
    except ValueError:
        asked = 0.5 * 2**number
    return asked if 0 <= asked <= _LONGEST_WAIT_S else _LONGEST_WAIT_S


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])[:_SHOWN_CHARACTERS]
    except (ValueError, KeyError, TypeError):
        return response.text[:_SHOWN_CHARACTERS]


def _content(said: Said) -> str | list[dict[str, Any]]:
    if all(isinstance(part, str) for part in said.parts):
        return "\n".join(str(part) for part in said.parts)
    return [content for part in said.parts for content in _contents(part)]


def _contents(part: Part) -> list[dict[str, Any]]:
    """Return a part as the API takes it; frames as images, which every endpoint takes."""
    if isinstance(part, str):
        return [{"type": "text", "text": part}]
    if isinstance(part, bytes):
        return [_image(part)]
    if isinstance(part, Clip) and part.is_list:
        return [_image(frame) for frame in part.files]
    return [{"type": "video_url", "video_url": {"url": _data_url(part.files[0], "video/mp4")}}]


def _image(data: bytes) -> dict[str, Any]:
    kind = next((kind for head, kind in _MEDIA_TYPES.items() if data.startswith(head)), "application/octet-stream")
    return {"type": "image_url", "image_url": {"url": _data_url(data, kind)}}


def _data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
