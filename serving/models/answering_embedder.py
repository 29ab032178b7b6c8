"""A model that answers and embeds by one decoder, whose weights are in memory once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bundle.directory import Bundle
from serving.engine.worker import Worker
from serving.models.embedder import EmbedderModel
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.models.vectors import VectorModel
from serving.protocol import EmbedRequest, EmbedResult
from serving.settings import EngineSettings


@VectorModel.register  # for whoever asks what embeds; it tokenizes and counts as a model that answers
class AnsweringEmbedder(GenerativeModel):
    """One bundle of `export --task both`.

    Conversations run in the engine; inputs to be embedded run once, side by side, on a thread of their own and over the
    same sessions. They keep no rows, and wait for none.

    Args:
        bundle: Opened.
        settings: Slots, batches, threads, limits.
        pool: Decodes images, fills templates, tokenizes.

    Raises:
        BundleError: A graph, the tokenizer or a template is unusable, or the canary fails.
        MachineError: This machine cannot run it.
    """

    does = "answering questions and embedding"

    def __init__(self, bundle: Bundle, settings: EngineSettings, pool: PreprocessPool) -> None:
        super().__init__(bundle, settings, pool)
        self._vectors = EmbedderModel(bundle, settings, pool, self._decoder.graphs.sessions)

    @property
    def workers(self) -> Mapping[Worker[Any], Callable[[], None]]:
        """Its threads, and what each runs first."""
        return {**super().workers, **self._vectors.workers}

    @property
    def num_admitted(self) -> int:
        """Requests of both kinds that hold a place."""
        return super().num_admitted + self._vectors.num_admitted

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Return one unit vector per input, in order, or one for each of its tokens.

        Raises:
            RequestError: As `EmbedderModel.embed`.
        """
        return await self._vectors.embed(request)
