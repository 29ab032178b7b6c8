"""Several models in this process behind the `EngineClient` protocol."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from bundle.directory import open_bundle, read_manifest
from bundle.errors import BundleError, EngineDeadError, ModelNotFoundError, ParameterError, StartingError, TaskError
from bundle.machine import resident_memory_bytes
from bundle.manifest import Task
from serving.engine_status import EngineStatus
from serving.models.answering_embedder import AnsweringEmbedder
from serving.models.cross_encoder import CrossEncoderModel
from serving.models.elsewhere import Elsewhere
from serving.models.embedder import EmbedderModel
from serving.models.embedding import EmbeddingModel
from serving.models.engine_bounds import within_engines
from serving.models.generative import GenerativeModel
from serving.models.image_embedder import ImageEmbedderModel
from serving.models.model import Model
from serving.models.pair_model import PairModel
from serving.models.pool import PreprocessPool
from serving.models.ranker import RankerModel
from serving.models.targets import check_target
from serving.models.vectors import VectorModel
from serving.protocol import (
    ONLY_ENGINE,
    ClassifyRequest,
    ClassifyResult,
    DetokenizeRequest,
    EmbedRequest,
    EmbedResult,
    GenerateEvent,
    GenerateRequest,
    Health,
    ModelCard,
    ScoreRequest,
    ScoreResult,
    TokenizeRequest,
    TokenizeResult,
    found_card,
    with_adapters,
)
from serving.settings import EngineSettings
from serving.tracing import Tracer
from serving.watch import Watched

logger = logging.getLogger(__name__)

Wanted = TypeVar("Wanted", bound=Model)

_LOADING = "models are loading"
_STOPPED = "the engine was stopped"
_DRAIN_LOOK_S = 0.05
_LONGEST_WATCH_S = 1.0
"""Between two looks at the threads; a quarter of the shortest time that is judged, where that is less."""

_MODEL_OF_TASK: dict[
    Task,
    type[GenerativeModel]
    | type[EmbeddingModel]
    | type[ImageEmbedderModel]
    | type[EmbedderModel]
    | type[CrossEncoderModel],
] = {
    "image-text-to-text": GenerativeModel,
    "image-text-to-text-and-vectors": AnsweringEmbedder,
    "dual-encoder": EmbeddingModel,
    "text-embedding": EmbeddingModel,
    "image-embedding": ImageEmbedderModel,
    "image-text-embedding": EmbedderModel,
    "cross-encoder": CrossEncoderModel,
}


def load_model(directory: Path, settings: EngineSettings, pool: PreprocessPool) -> Model:
    """Return the model of a bundle, opened and checked, not started.

    Raises:
        BundleError: The bundle is not whole, not what it says, failed its gate or has none, or its canary fails here.
        MachineError: This machine cannot run it.
    """
    bundle = open_bundle(directory, verify=settings.verify_digests, allow_ungated=settings.allow_ungated)
    check_target(bundle, settings)
    settings = within_engines(bundle, settings)
    is_decoder = bundle.manifest.reads_pairs and bundle.manifest.embedder is not None
    kind = RankerModel if is_decoder else _MODEL_OF_TASK[bundle.manifest.task]
    return kind(bundle, settings, pool)


def _check_names(directories: Sequence[Path]) -> None:
    """Refuse two bundles of one name before the first is loaded, which may take minutes.

    Raises:
        BundleError: There are two, or one is no bundle.
    """
    seen: set[str] = set()
    for directory in directories:
        if (name := read_manifest(directory).name) in seen:
            raise _taken(directory, name)
        seen.add(name)


def _taken(directory: Path, name: str) -> BundleError:
    return BundleError(f"{directory}: a model named {name} is served already. Export it with another --name.")


def _settle() -> None:
    """Leave out of the search for garbage what lives as long as a model, so that the rest is looked through, often.

    A failed request's traceback holds its body in a cycle. What a model left behind that is gone is found first.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


class LocalClient:
    """An `EngineClient` over bundles in this process.

    `async with LocalClient(bundles, settings) as client` loads, warms up, serves and stops. Until `start` returns,
    `health` says that models are loading.

    Args:
        bundles: Bundle directories; each is served under its manifest's name.
        settings: For every model.
        tracer: Makes spans of what is done; None: there are none.
        elsewhere: Encodes the images, so that no model here loads its vision encoder; None: each its own.
    """

    def __init__(
        self,
        bundles: Sequence[Path],
        settings: EngineSettings,
        tracer: Tracer | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._bundles = tuple(bundles)
        self._settings = settings
        self._tracer = tracer
        self._pool = PreprocessPool(settings, elsewhere)
        self._models: dict[str, Model] = {}
        self._state = _LOADING  # empty while serving
        self._watch: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Load, check and warm up every model, off the event loop.

        Raises:
            BundleError: A bundle is refused, or two have one name. Nothing is left running.
            MachineError: This machine cannot run one.
        """
        try:
            await asyncio.to_thread(_check_names, self._bundles)
            for directory in self._bundles:
                await self._load(directory)
        except BaseException:
            await self.close()
            raise
        _settle()
        self._state = ""
        self._watch = asyncio.create_task(self._watch_over())

    async def _load(self, directory: Path) -> Model:
        name = (await asyncio.to_thread(read_manifest, directory)).name
        if name in self._models:
            raise _taken(directory, name)
        model = await asyncio.to_thread(load_model, directory, self._settings, self._pool)
        try:
            await asyncio.to_thread(model.start)
            if self._state == _STOPPED:
                raise EngineDeadError(_STOPPED)
        except BaseException:
            await asyncio.to_thread(model.close)
            raise
        self._models[name] = model
        logger.info("%s", model.start_line)
        return model

    async def load(self, directory: Path) -> ModelCard:
        """Load a bundle and serve it beside the others; one at a time.

        Raises:
            BundleError: It is refused, or a model of its name is served; what was served still is.
            SettingsError: It cannot be served with the settings.
            MachineError: This machine cannot run it.
        """
        async with self._changing:
            self._check_serving()
            card = (await self._load(directory)).card
            _settle()
            return card

    async def unload(self, name: str, drain_timeout_s: float) -> None:
        """Take no more requests for a model, and free its memory once those under way have ended.

        Args:
            name: Of the model.
            drain_timeout_s: After so long, what is left fails with EngineDeadError.

        Raises:
            ModelNotFoundError: None of that name is served.
            ParameterError: It is an adapter of one.
        """
        async with self._changing:
            card = self._card(name)
            if card.parent is not None:
                raise ParameterError(
                    f"{name} is an adapter of {card.parent}, and is there as long as that is; unload {card.parent}",
                    "model",
                )
            model = self._models.pop(card.name)
            end_s = time.monotonic() + drain_timeout_s
            while model.num_admitted and time.monotonic() < end_s:
                await asyncio.sleep(_DRAIN_LOOK_S)
            if model.num_admitted:
                logger.warning("%s: %d requests are ended: it is unloaded", name, model.num_admitted)
            await asyncio.to_thread(model.close)
            del model
            _settle()
            logger.info("%s is no longer served", name)

    async def _watch_over(self) -> None:
        period_s = min(_LONGEST_WATCH_S, self._settings.stall_timeout_s / 4)
        while True:
            await asyncio.sleep(period_s)
            for each in self._watched:
                each.relieve()

    @property
    def _watched(self) -> list[Watched]:
        """Whatever works on threads of its own."""
        return [*(worker for model in self._models.values() for worker in model.workers), *self._pool.crews]

    async def close(self) -> None:
        """Stop every model; unfinished requests fail with EngineDeadError."""
        self._state = _STOPPED
        if self._watch:
            self._watch.cancel()
        for model in list(self._models.values()):
            await asyncio.to_thread(model.close)
        self._pool.close()
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.flush)

    async def __aenter__(self) -> LocalClient:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def models(self) -> list[ModelCard]:
        """Return the served models, in the order of the bundles, behind each its adapters."""
        return with_adapters([model.card for model in self._models.values()])

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """Yield the answer's pieces, then exactly one FinishedEvent, or raise. Closing the iterator cancels."""
        card = self._card(request.model)
        own = replace(request, model=card.engine_model, adapter=card.adapter or request.adapter)
        answer = self._of_card(card, GenerativeModel).generate(own)
        if self._tracer is not None:
            answer = self._tracer.generation(replace(request, messages=(), tools=()), answer)
        del request, own  # they hold the encoded images, which an answer is not to hold for its whole length
        async with aclosing(answer) as events:
            async for event in events:
                yield event

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Return one embedding per input."""
        work = self._model(request.model, VectorModel).embed(request)  # type: ignore[type-abstract]
        return await (work if self._tracer is None else self._tracer.work("embeddings", request, work))

    async def score(self, request: ScoreRequest) -> ScoreResult:
        """Return how well each pair fits."""
        work = self._model(request.model, PairModel).score(request)  # type: ignore[type-abstract]
        return await (work if self._tracer is None else self._tracer.work("score", request, work))

    async def classify(self, request: ClassifyRequest) -> ClassifyResult:
        """Return every image's score for every label."""
        work = self._model(request.model, EmbeddingModel).classify(request)
        return await (work if self._tracer is None else self._tracer.work("classify", request, work))

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Return the tokens of a conversation or a text."""
        return await self._model(request.model, Model).tokenize(request)  # type: ignore[type-abstract]

    async def detokenize(self, request: DetokenizeRequest) -> str:
        """Return the text of tokens, control tokens written out."""
        return await self._model(request.model, Model).detokenize(request)  # type: ignore[type-abstract]

    def clear_caches(self) -> None:
        """Forget what earlier requests left: features of images, and what was read of prompts."""
        self._pool.features.clear()
        for model in self._models.values():
            if isinstance(model, GenerativeModel):
                model.clear_prefixes()

    async def health(self) -> Health:
        """Return whether every model serves, and each one's gauges."""
        watched = self._watched
        reason = "; ".join(filter(None, [self._state, *(each.fault for each in watched)]))
        gauges = {name: model.gauges for name, model in self._models.items()}
        is_alive = not any(each.needs_restart for each in watched)
        return Health(not reason, reason, gauges, is_alive, is_starting=self._state == _LOADING)

    async def status(self) -> dict[str, dict[str, EngineStatus]]:
        """Return what every model's engine is doing; all are in this process, whose memory they share."""
        memory_bytes = resident_memory_bytes()
        return {
            name: {ONLY_ENGINE: replace(model.status, memory_bytes=memory_bytes)}
            for name, model in self._models.items()
        }

    def _check_serving(self) -> None:
        if self._state:
            refusal = StartingError if self._state == _LOADING else EngineDeadError
            raise refusal(f"{self._state}; ask /health/ready before sending requests")

    def _card(self, name: str) -> ModelCard:
        """Return a served model, or an adapter of one."""
        self._check_serving()
        if name in self._models:
            return self._models[name].card
        cards = with_adapters([model.card for model in self._models.values()])
        card = found_card(cards, name)
        if card is None:
            told = ", ".join(each.name for each in cards)
            raise ModelNotFoundError(f"no model {name!r} is served; there are {told}", "model")
        return card

    def _model(self, name: str, kind: type[Wanted]) -> Wanted:
        return self._of_card(self._card(name), kind)

    def _of_card(self, card: ModelCard, kind: type[Wanted]) -> Wanted:
        model = self._models[card.engine_model]
        if not isinstance(model, kind):
            raise TaskError(f"{card.name} does {card.task}; it is not made for {kind.does}", "model")
        return model
