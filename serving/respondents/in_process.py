"""A bundle in this process, asked as an evaluation or a search asks: through the engine, many questions at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType

import numpy as np

from bundle.chat_template import CHAT_TEMPLATE, INPUT_TEMPLATE
from bundle.directory import read_manifest
from bundle.errors import DeadlineError, ParameterError, RequestError, SettingsError
from bundle.frames.options import FrameOptions
from bundle.manifest import ANSWERING_TASKS, EMBEDDING_TASKS, RANKING_TASKS, InputType
from bundle.similarity import similarity
from quant.evaluation.asking import Clip, Part, RefusedError, Said, Scores, Vectors, many_vectors
from serving.models.client import LocalClient
from serving.protocol import (
    EmbedRequest,
    GenerateRequest,
    ImagePart,
    KVCompression,
    Message,
    SamplingParams,
    ScoreRequest,
    TextPart,
    TokenEvent,
    VideoPart,
    VisionReduction,
)
from serving.settings import EngineSettings

_FRAMES = 8
"""Of a video that is one file, as the API looks at one where nothing else is said."""
_LIST_FPS = 1.0
_ALL = -1
"""Of `ScoreRequest.truncate_tokens`: cross-encoders read short texts, and a question may be longer."""


@dataclass(frozen=True)
class Cheaper:
    """What is left out of a prompt.

    Attributes:
        vision: Of image tokens; None: nothing.
        kv: Of cache rows; None: nothing.
    """

    vision: VisionReduction | None = None
    kv: KVCompression | None = None


class BundleRespondent:
    """A bundle as a respondent; `async with` loads and unloads it.

    Args:
        bundle: Its directory; one that failed its quality gate is loaded too.
        at_once: Questions that are asked at a time.
        threads: Inside one operator; 0: one per physical core.
        cheaper: What is left out of prompts.
        adapter: Of the bundle's, by name, that answers run through; empty: none.

    Raises:
        BundleFormatError: The folder is not a bundle.
        ModelNotFoundError: It holds no such adapter.
    """

    def __init__(
        self, bundle: Path, at_once: int = 4, threads: int = 0, cheaper: Cheaper | None = None, adapter: str = ""
    ) -> None:
        self._manifest, self._adapter = read_manifest(bundle), adapter
        self._manifest.adapter_number(adapter)
        settings = EngineSettings(
            max_sequences=at_once, intra_threads=threads, allow_ungated=True, encoder_runtime="onnxruntime"
        )
        self._client, self._cheaper, self._numbers = LocalClient([bundle], settings), cheaper or Cheaper(), count()

    async def __aenter__(self) -> BundleRespondent:
        await self._client.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    @property
    def name(self) -> str:
        """The bundle's name."""
        return self._manifest.name

    @property
    def embeds(self) -> bool:
        """Whether it makes vectors."""
        return self._manifest.task in EMBEDDING_TASKS

    @property
    def answers(self) -> bool:
        """Whether it makes answers; there are models that do both."""
        return self._manifest.task in ANSWERING_TASKS

    @property
    def ranks(self) -> bool:
        """Whether it makes vectors, or reads two inputs together."""
        return self._manifest.task in RANKING_TASKS

    @property
    def template(self) -> str:
        """What the model's labels stand in."""
        return self._manifest.dual.prompt_template if self._manifest.dual else ""

    @property
    def identity(self) -> str:
        """What tells this bundle's vectors from another's: a digest of its graphs, its weights and what feeds them.

        Of a decoder that embeds, how inputs are written and states are pooled as well: graphs are the same whatever
        that is.
        """
        files, how = self._manifest.files, self._manifest.embedder
        told: list[tuple[str, str]] = sorted(
            (name, each.sha256) for name, each in files.items() if _makes_vectors(name)
        )
        if how is not None:
            template = INPUT_TEMPLATE if INPUT_TEMPLATE in files else CHAT_TEMPLATE
            told += [(name, files[name].sha256) for name in (template,) if name in files]
            told.append(("embedder", how.model_dump_json()))
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    async def answer(self, conversation: Sequence[Said], max_tokens: int) -> str:
        """Return the greedy answer.

        Raises:
            RefusedError: The model does not take this one.
        """
        messages = tuple(Message(said.role, tuple(map(_part, said.parts))) for said in conversation)
        has_images = any(not isinstance(part, TextPart) for message in messages for part in message.parts)
        request = GenerateRequest(
            f"asked-{next(self._numbers)}",
            self.name,
            messages,
            SamplingParams(max_tokens=max_tokens, temperature=0.0),
            kv=self._cheaper.kv,
            vision=self._cheaper.vision if has_images else None,
            adapter=self._adapter,
        )
        try:
            pieces = [event.text async for event in self._client.generate(request) if isinstance(event, TokenEvent)]
        except ParameterError:  # of this run's options: the next question would fail by it too
            raise
        except (RequestError, DeadlineError) as error:
            raise RefusedError(str(error)) from error
        return "".join(pieces)

    async def embed(self, inputs: Sequence[str | bytes], kind: InputType | None = None) -> Vectors:
        """Return [n, E] float32, one row of unit length for each text and encoded image.

        Raises:
            RefusedError: The model does not take one of them.
            SettingsError: It keeps a vector for every token.
        """
        vectors = await self._embedded(inputs, () if kind is None else (kind,) * len(inputs))
        if isinstance(vectors, tuple):
            raise SettingsError(many_vectors(self.name))
        return vectors

    async def scores(self, query: str | bytes, documents: Sequence[str | bytes]) -> Scores:
        """Return [n] how near each document is to the query: by vectors, or of both read together.

        Raises:
            RefusedError: The model does not take one of them.
        """
        if self.embeds:
            kinds: list[InputType] = ["document"] * (1 + len(documents))
            kinds[0] = "query"
            first, *others = await self._embedded([query, *documents], tuple(kinds))
            return np.array([similarity(first, each) for each in others])
        pairs = tuple((_input(query), _input(each)) for each in documents)
        request = ScoreRequest(f"asked-{next(self._numbers)}", self.name, pairs, truncate_tokens=_ALL)
        try:
            return np.asarray((await self._client.score(request)).scores, np.float64)
        except RequestError as error:
            raise RefusedError(str(error)) from error

    async def _embedded(
        self, inputs: Sequence[str | bytes], kinds: tuple[InputType, ...]
    ) -> Vectors | tuple[Vectors, ...]:
        parts = tuple(map(_input, inputs))
        request = EmbedRequest(f"asked-{next(self._numbers)}", self.name, parts, input_types=kinds)
        try:
            return (await self._client.embed(request)).embeddings
        except RequestError as error:
            raise RefusedError(str(error)) from error


def _input(given: str | bytes) -> TextPart | ImagePart:
    return TextPart(given) if isinstance(given, str) else ImagePart(given)


def _makes_vectors(name: str) -> bool:
    return ".onnx" in name or name in ("tokenizer.json", "preprocessor.json")


def _part(part: Part) -> TextPart | ImagePart | VideoPart:
    if isinstance(part, str):
        return TextPart(part)
    if isinstance(part, Clip):
        options = FrameOptions(list_fps=_LIST_FPS) if part.is_list else FrameOptions(num_frames=_FRAMES)
        return VideoPart(part.files, options)
    return ImagePart(part)
