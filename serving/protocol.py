"""The typed messages between the HTTP application and whatever runs the models.

The application knows only `EngineClient`. In one process that is `serving.engine`'s own client; on a cluster it is a
thin wrapper over Ray Serve deployment handles. Every message is a frozen dataclass of plain data, so that it pickles.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from bundle.gates import Gate, Unmeasured
from bundle.generation import SamplingDefaults
from bundle.manifest import Task

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TextPart:
    """A piece of text in a message."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """An encoded image (PNG, JPEG, ...) in a message; decoded by the engine side, off the engine thread."""

    data: bytes


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; the parts keep their order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[TextPart | ImagePart, ...]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. None takes the bundle's own default (`generation.json`).

    Attributes:
        max_tokens: Most tokens to generate; where the bundle is silent too, up to the context's end.
        temperature: 0 is greedy, as is None where the bundle is silent too.
        top_p: Nucleus mass in (0, 1].
        top_k: 0 means all.
        seed: None draws a fresh one.
        stop: Generation ends before the first occurrence of any; at most 4.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def filled(self, defaults: SamplingDefaults) -> SamplingParams:
        """Return the sampling with what a request left open taken from its bundle's defaults."""
        left_open = {
            name: value
            for name, value in defaults.model_dump().items()
            if value is not None and getattr(self, name) is None
        }
        return replace(self, **left_open)


@dataclass(frozen=True)
class GenerateRequest:
    """One chat completion (one choice)."""

    request_id: str
    model: str
    messages: tuple[Message, ...]
    sampling: SamplingParams = SamplingParams()


@dataclass(frozen=True)
class Usage:
    """Token counts of one request.

    Attributes:
        image_tokens: Of images and frames, part of `prompt_tokens`.
        cached_image_tokens: Those of them whose features were kept from before, and were not encoded again.
    """

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int = 0
    cached_image_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Where one request's time went, in seconds."""

    queue_s: float = 0.0
    preprocess_s: float = 0.0
    vision_s: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True)
class TokenEvent:
    """A piece of the answer.

    Attributes:
        text: May be empty while a multi-byte character or a stop string is undecided.
        token_ids: The tokens that it is of; none of the last piece, which was held back.
        sampled_s: When the tokens were chosen, by the monotonic clock of the engine's machine: only differences tell,
            and they are the engine's own, however slowly a client takes its pieces.
    """

    text: str
    token_ids: tuple[int, ...]
    sampled_s: float = 0.0


@dataclass(frozen=True)
class FinishedEvent:
    """The terminal event of a request that ended well; exactly one, and last."""

    reason: FinishReason
    usage: Usage
    timings: Timings


GenerateEvent = TokenEvent | FinishedEvent


@dataclass(frozen=True)
class EmbedRequest:
    """Texts and images to embed; results come back in the order of `inputs`."""

    request_id: str
    model: str
    inputs: tuple[TextPart | ImagePart, ...]


@dataclass(frozen=True)
class EmbedResult:
    """[n, E] float32, each row of unit length, and the tokens that the texts took."""

    embeddings: npt.NDArray[np.float32]
    prompt_tokens: int


@dataclass(frozen=True)
class ClassifyRequest:
    """Images to score against candidate labels."""

    request_id: str
    model: str
    images: tuple[ImagePart, ...]
    labels: tuple[str, ...]
    prompt_template: str | None = None


@dataclass(frozen=True)
class ClassifyResult:
    """[n images, n labels] float32 probabilities (softmax over labels) or per-label scores (sigmoid)."""

    scores: npt.NDArray[np.float32]
    prompt_tokens: int


@dataclass(frozen=True)
class ModelCard:
    """What `/v1/models` tells of one served model.

    Attributes:
        is_gated: Whether quality was measured on samples and every gate that could be measured passed; None for fp32,
            its own reference.
        unmeasured: Gates that the samples could not tell of.
    """

    name: str
    task: Task
    model_type: str
    schemes: dict[str, str]
    weight_bytes: int
    context_tokens: int | None
    gates: tuple[Gate, ...] = ()
    is_gated: bool | None = None
    unmeasured: tuple[Unmeasured, ...] = ()


@dataclass(frozen=True)
class Health:
    """Whether requests can be served now; `reason` says why not.

    Attributes:
        is_ready: Requests are answered.
        reason: Why not, where not.
        model_gauges: Momentary values by model and metric name.
        is_alive: False when a worker died, or hangs for too long, and only a restart of the process helps; liveness
            probes turn red.
    """

    is_ready: bool
    reason: str = ""
    model_gauges: dict[str, dict[str, float]] = field(default_factory=dict)
    is_alive: bool = True


class EngineClient(Protocol):
    """What the HTTP application needs of an engine, local or remote.

    Every method raises the errors of `bundle.errors`: RequestError for the caller's mistakes, OverloadedError,
    EngineDeadError.
    """

    async def models(self) -> list[ModelCard]:
        """Return the served models, in the order they were given."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """Yield the answer's pieces, then exactly one FinishedEvent, or raise. Closing the iterator cancels."""
        ...

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Return one embedding per input."""
        ...

    async def classify(self, request: ClassifyRequest) -> ClassifyResult:
        """Return every image's score for every label."""
        ...

    async def health(self) -> Health:
        """Return the engine's state; never raises."""
        ...


class ManagedClient(EngineClient, Protocol):
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
