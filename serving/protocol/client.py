"""What the API asks of whoever runs models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from serving.engine_status import EngineStatus
from serving.protocol.cards import Health, ModelCard
from serving.protocol.embedding import (
    ClassifyRequest,
    ClassifyResult,
    EmbedRequest,
    EmbedResult,
    ScoreRequest,
    ScoreResult,
)
from serving.protocol.generation import GenerateEvent, GenerateRequest
from serving.protocol.tokens import DetokenizeRequest, TokenizeRequest, TokenizeResult


class EngineClient(Protocol):
    """What the HTTP application needs of an engine, local or remote.

    Every method raises the errors of `bundle.errors`: RequestError for the caller's mistakes, OverloadedError,
    EngineDeadError.
    """

    async def models(self) -> list[ModelCard]:
        """Return the served models, in the order they were given."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """Yield the answer's pieces, then exactly one FinishedEvent, or raise. Closing the iterator cancels.

        Before the first piece, there may be any number of WaitingEvents.
        """
        ...

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Return one embedding per input."""
        ...

    async def score(self, request: ScoreRequest) -> ScoreResult:
        """Return how well each pair fits."""
        ...

    async def classify(self, request: ClassifyRequest) -> ClassifyResult:
        """Return every image's score for every label."""
        ...

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Return the tokens of a conversation or a text."""
        ...

    async def detokenize(self, request: DetokenizeRequest) -> str:
        """Return the text of tokens, control tokens written out."""
        ...

    async def health(self) -> Health:
        """Return the engine's state; never raises."""
        ...

    async def status(self) -> dict[str, dict[str, EngineStatus]]:
        """Return what every engine is doing, by model and by the engine's id; one that does not answer is left out."""
        ...


class ModelControl(Protocol):
    """What changes which models are served."""

    async def load(self, directory: Path) -> ModelCard:
        """Load a bundle and serve it; returns once it is warm.

        Raises:
            BundleError: It is refused, or a model of its name is served; what was served still is.
            SettingsError: It cannot be served with the settings.
            MachineError: This machine cannot run it.
        """
        ...

    async def unload(self, name: str, drain_timeout_s: float) -> None:
        """Take no more requests for a model, and free its memory once those under way have ended.

        Args:
            name: Of the model.
            drain_timeout_s: After so long, what is left fails with EngineDeadError.

        Raises:
            ModelNotFoundError: None of that name is served.
        """
        ...


class ManagedClient(EngineClient, ModelControl, Protocol):
    """An `EngineClient` that someone starts and closes: a server its own, a replica its own."""

    async def start(self) -> None:
        """Load and warm up; until then `health` is not ready.

        Raises:
            PocketVLMError: It cannot; nothing is left running.
        """
        ...

    async def close(self) -> None:
        """Stop; unfinished requests fail with EngineDeadError."""
        ...

    def clear_caches(self) -> None:
        """Forget what earlier requests left: features of images, and what was read of prompts."""
        ...
