"""What every served model is: a bundle opened at construction, serving after `start`. Used from one event loop."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from bundle.manifest import Manifest
from bundle.text import Tokenizer
from serving.engine.worker import Worker
from serving.engine_status import EngineStatus
from serving.models.admission import Admission
from serving.models.cards import card_of
from serving.models.pool import PreprocessPool
from serving.models.tokens import text_of
from serving.protocol import DetokenizeRequest, ModelCard, TokenizeRequest, TokenizeResult
from serving.settings import EngineSettings


class Model(ABC):
    """One model of a client.

    Class attributes:
        does: What it is for, as the refusal of another task says it.

    Args:
        manifest: Of the bundle.
        settings: Slots, batches, threads, limits.
        pool: Tokenizes.
    """

    does: ClassVar[str]

    def __init__(self, manifest: Manifest, settings: EngineSettings, pool: PreprocessPool) -> None:
        self._manifest = manifest
        self._settings = settings
        self._pool = pool
        self._admission = Admission(manifest.name, settings.max_sequences + settings.max_waiting)

    @property
    def card(self) -> ModelCard:
        """What `/v1/models` tells of it."""
        return card_of(self._manifest, self._settings)

    @property
    def num_admitted(self) -> int:
        """Requests that hold a place: waiting, running, or on their way there."""
        return self._admission.num_admitted

    @property
    def start_line(self) -> str:
        """The line printed at start: name and weights."""
        return f"{self._manifest.name}: {self._manifest.weight_bytes / 2**20:.0f} MiB of weights"

    @property
    @abstractmethod
    def workers(self) -> Mapping[Worker[Any], Callable[[], None]]:
        """Its threads, and what each runs first so that no request pays for a first run."""

    @property
    @abstractmethod
    def gauges(self) -> dict[str, float]:
        """Numbers for `/metrics`."""

    @property
    def status(self) -> EngineStatus:
        """What it is doing."""
        return EngineStatus(time.monotonic(), gauges=self.gauges)

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""

    @abstractmethod
    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Return the tokens of a text, or of a conversation where the model takes those."""

    async def detokenize(self, request: DetokenizeRequest) -> str:
        """Return the text of tokens, control tokens written out.

        Raises:
            ParameterError: The model has no such token.
        """
        return await self._pool.text.run(request.request_id, text_of, self.tokenizer, request.token_ids)

    def start(self) -> None:
        """Start the threads and warm up on them; blocks for the length of a few steps."""
        for worker, warm_up in self.workers.items():
            worker.start(warm_up)

    def close(self) -> None:
        """Stop the threads; unfinished requests fail with EngineDeadError."""
        for worker in self.workers:
            worker.close()
