"""An engine without a model: deterministic answers at a chosen pace, for tests and for measuring all but the model.

A chat is answered with the number of images and the words of the last message, one token per word; where a structure
is asked for, with its first choice, an empty JSON object, or a call of its first function. Every choice is the same. An
embedding is drawn from the digest of its input; a label scores by its digest. Images are decoded for real, so that bad
ones fail as they would in an engine.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bundle.decode import decode_image
from bundle.errors import (
    BundleError,
    EngineDeadError,
    ModelNotFoundError,
    OverloadedError,
    ParameterError,
    TaskError,
)
from bundle.gates import Gate, Unmeasured
from bundle.grounding import KnownGrounding
from bundle.manifest import EMBEDDING_TASKS, Task
from bundle.zero_shot import SLOT, label_text
from serving.engine_status import EngineStatus, SlotStatus
from serving.fake_answers import TOKENS_PER_IMAGE, planned_answer, prompt_words, word_logprobs
from serving.protocol import (
    ONLY_ENGINE,
    ClassifyRequest,
    ClassifyResult,
    DetokenizeRequest,
    EmbedInput,
    EmbedRequest,
    EmbedResult,
    FinishedEvent,
    GenerateEvent,
    GenerateRequest,
    Health,
    ImagePart,
    JoinedPart,
    ModelCard,
    ScoreRequest,
    ScoreResult,
    TextPart,
    Timings,
    TokenEvent,
    TokenizeRequest,
    TokenizeResult,
    TokensPart,
    WaitingEvent,
)

EMBEDDING_SIZE = 16
FAKE_FUSED = b"rows of a fake"
FAKE_HEADS = 3

FAKE_VLM = ModelCard(
    "fake-vlm",
    "image-text-to-text",
    "fake",
    {"decoder": "int4"},
    1_000_000,
    64,
    (
        Gate(
            name="clear_agreement",
            value=0.99,
            limit=0.95,
            direction="min",
            n=100,
            passed=True,
        ),
    ),
    is_gated=True,
    unmeasured=(Unmeasured(name="image_sensitivity", reason="no sample has an image"),),
    vision_methods=("uniform", "pooling"),
    kv_policies=("uniform", "snapkv"),
)
FAKE_EMBEDDER = ModelCard(
    "fake-embedder", "image-text-embedding", "fake", {"vision_encoder": "fp32", "decoder": "fp32"}, 900_000, 512
)
FAKE_RANKER = ModelCard("fake-ranker", "cross-encoder", "fake", {"pair_encoder": "fp32"}, 700_000, None)
FAKE_CLIP = ModelCard("fake-clip", "dual-encoder", "fake", {"vision_encoder": "fp32"}, 500_000, None)


@dataclass
class FakeBehaviour:
    """What a fake engine does; tests change the fields while it runs.

    Attributes:
        first_token_s: Wait before the first token, and before an embedding or a classification.
        token_s: Wait before each later token.
        max_running: Requests at once; one more is refused.
        failure: Raised by every request where it is set; a library's BaseException as well.
        failure_after_tokens: Tokens of an answer that come before `failure`.
        health: What `health` returns, the gauges aside.
        num_waits: Words before the first token that a chat waits for its model to be there.
        answer: What a chat that no structure holds is answered; None: by rule.
        grounding: How boxes stand in answers; None: they say none.
    """

    first_token_s: float = 0.0
    token_s: float = 0.0
    max_running: int = 1024
    failure: BaseException | None = None
    failure_after_tokens: int = 0
    health: Health = field(default_factory=lambda: Health(is_ready=True))
    num_waits: int = 0
    answer: str | None = None
    grounding: KnownGrounding | None = None


class FakeClient:
    """An `EngineClient` that answers by rule.

    Attributes:
        behaviour: Pace and faults.
        generations: Requests answered to their end or under way.
        num_running: Requests under way now.
        num_clears: How often its caches were cleared.
        cancelled: Ids of the chats whose iterator was closed before its end.
    """

    def __init__(
        self, cards: tuple[ModelCard, ...] = (FAKE_VLM, FAKE_CLIP), behaviour: FakeBehaviour | None = None
    ) -> None:
        self._cards = {card.name: card for card in cards}
        self.behaviour = behaviour or FakeBehaviour()
        self.generations: list[GenerateRequest] = []
        self.num_running = 0
        self.cancelled: list[str] = []
        self.num_clears = 0
        self._is_closed = False
        self._waits: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        """Do nothing: there is nothing to load."""

    async def close(self) -> None:
        """Stop; unfinished requests fail with EngineDeadError."""
        self._is_closed = True
        for wait in self._waits:
            wait.cancel()

    async def load(self, directory: Path) -> ModelCard:
        """Serve a further model under the folder's name."""
        if directory.name in self._cards:
            raise BundleError(f"{directory}: a model named {directory.name} is served already")
        self._cards[directory.name] = replace(FAKE_VLM, name=directory.name)
        return self._cards[directory.name]

    async def unload(self, name: str, drain_timeout_s: float) -> None:
        """Serve a model no more."""
        if self._cards.pop(name, None) is None:
            raise ModelNotFoundError(f"model {name!r} is not served; served: {', '.join(self._cards)}", "model")

    def clear_caches(self) -> None:
        """Count that it was asked: there is nothing to forget."""
        self.num_clears += 1

    async def models(self) -> list[ModelCard]:
        """Return the cards given at construction."""
        return list(self._cards.values())

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """Yield one token per word of the answer, then the terminal event."""
        card = self._card(request.model, "image-text-to-text")
        planned = planned_answer(request, card, self.behaviour.answer)
        started_s = time.perf_counter()
        self.generations.append(request)
        self._enter()
        try:
            for _ in range(self.behaviour.num_waits):
                yield WaitingEvent(f"{card.name} is being loaded")
            for place, word in enumerate(planned.words):
                await self._pause(place)
                for index in range(request.num_choices):
                    told = word_logprobs(word, request.sampling.top_logprobs)
                    prompt_tokens = 0 if place or index else planned.usage.prompt_tokens
                    yield TokenEvent(word, (place,), time.monotonic(), index, told, prompt_tokens=prompt_tokens)
            await self._pause(len(planned.words), is_end=True)
            for index in range(request.num_choices):
                ended = TokenEvent("", (), index=index, reason=planned.reason, stopped_by=planned.stopped_by)
                grounding = self.behaviour.grounding
                yield ended if grounding is None else replace(ended, grounded=grounding.read("".join(planned.words)))
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled.append(request.request_id)
            raise
        finally:
            self.num_running -= 1
        timings = _timings(started_s, self.behaviour.first_token_s)
        kept = FAKE_FUSED if request.fuses or request.learns else None
        yield FinishedEvent(planned.reason, planned.usage, timings, kept, FAKE_HEADS if request.learns else 0)

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Return vectors of unit length that depend on the input alone."""
        card = self._card(request.model, *EMBEDDING_TASKS)
        if request.dimensions not in (None, EMBEDDING_SIZE):
            raise ParameterError(f"dimensions = {request.dimensions}: vectors have {EMBEDDING_SIZE}", "dimensions")
        await self._serve_once()
        inputs = [_alone(part, request.truncate_tokens, card) for part in request.inputs]
        num_tokens = sum(len(part.text.split()) for parts in inputs for part in parts if isinstance(part, TextPart))
        if card.task == "image-text-embedding":
            vectors = tuple(np.concatenate([_token_vectors(part) for part in parts]) for parts in inputs)
            return EmbedResult(vectors, num_tokens)
        return EmbedResult(np.stack([_embedding(_content(part)) for (part,) in inputs]), num_tokens)

    async def score(self, request: ScoreRequest) -> ScoreResult:
        """Return for each pair how near its fake embeddings are, from 0 to 1."""
        self._card(request.model, "cross-encoder")
        if request.instruction is not None:
            raise ParameterError(f"instruction: {request.model} is told none; leave it out", "instruction")
        await self._serve_once()
        parts = [[_content(part) for part in pair if isinstance(part, TextPart | ImagePart)] for pair in request.pairs]
        raw = [_embedding(first) @ _embedding(second) for first, second in parts]
        scores = raw if request.is_raw else [(1 + each) / 2 for each in raw]
        texts = [part for pair in request.pairs for part in pair if isinstance(part, TextPart)]
        return ScoreResult(np.array(scores, np.float32), sum(len(part.text.split()) for part in texts))

    async def classify(self, request: ClassifyRequest) -> ClassifyResult:
        """Return softmax scores of cosines between the fake embeddings."""
        self._card(request.model, "dual-encoder")
        await self._serve_once()
        templates = request.templates or (SLOT,)
        texts = [[label_text(template, label) for template in templates] for label in request.labels]
        labels = np.stack([np.mean([_embedding(text.encode()) for text in of_label], axis=0) for of_label in texts])
        images = np.stack([_embedding(_content(image)) for image in request.images])
        exponentials = np.exp(10 * images @ labels.T)
        scores = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
        return ClassifyResult(scores, sum(len(label.split()) for label in request.labels))

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Return a token per word, numbered, and `TOKENS_PER_IMAGE` per image."""
        if request.model not in self._cards:
            self._card(request.model, "image-text-to-text")
        await self._serve_once()
        words = prompt_words(request) if request.text is None else request.text.split()
        return TokenizeResult(tuple(range(len(words))), tuple(words))

    async def detokenize(self, request: DetokenizeRequest) -> str:
        """Return a word per token."""
        await self._serve_once()
        return " ".join(f"w{token_id}" for token_id in request.token_ids)

    async def health(self) -> Health:
        """Return the health set in `behaviour`, with the gauges an engine has."""
        gauges = {
            "num_requests_running": float(self.num_running),
            "num_requests_waiting": 0.0,
            "kv_cache_usage_perc": min(1.0, self.num_running / self.behaviour.max_running),
        }
        return replace(self.behaviour.health, model_gauges=dict.fromkeys(self._cards, gauges))

    async def status(self) -> dict[str, dict[str, EngineStatus]]:
        """Return a slot for each request that is under way, of the newest generations."""
        gauges = (await self.health()).model_gauges
        under_way = [each.request_id for each in self.generations[len(self.generations) - self.num_running :]]
        slots = tuple(SlotStatus(slot, "decode", 4, name) for slot, name in enumerate(under_way))
        now_s = time.monotonic()
        return {name: {ONLY_ENGINE: EngineStatus(now_s, 1 << 20, gauges[name], slots)} for name in self._cards}

    def _card(self, model: str, *tasks: Task) -> ModelCard:
        if (card := self._cards.get(model)) is None:
            raise ModelNotFoundError(f"model {model!r} is not served; served: {', '.join(self._cards)}", "model")
        if card.task not in tasks:
            raise TaskError(f"model {model!r} does {card.task}, not {' or '.join(tasks)}", "model")
        return card

    def _enter(self) -> None:
        if self.num_running >= self.behaviour.max_running:
            raise OverloadedError(f"{self.num_running} requests are running, the limit; retry after a while")
        self.num_running += 1

    async def _pause(self, index: int, *, is_end: bool = False) -> None:
        if self.behaviour.failure is not None and index >= self.behaviour.failure_after_tokens:
            raise self.behaviour.failure
        if not is_end:
            await self._wait(self.behaviour.token_s if index else self.behaviour.first_token_s)
        if self._is_closed:
            raise EngineDeadError("the engine was stopped; its requests with it. Send them again.")

    async def _wait(self, time_s: float) -> None:
        """Wait for so long, or until the engine is closed."""
        wait = asyncio.get_running_loop().create_future()
        self._waits.add(wait)
        try:
            await asyncio.wait((wait,), timeout=time_s)
        finally:
            self._waits.discard(wait)

    async def _serve_once(self) -> None:
        self._enter()
        try:
            await self._pause(0)
        finally:
            self.num_running -= 1


def _timings(started_s: float, first_token_s: float) -> Timings:
    total_s = time.perf_counter() - started_s
    return Timings(
        first_token_s=first_token_s, total_s=total_s, prefill_s=first_token_s, decode_s=total_s - first_token_s
    )


def _alone(part: EmbedInput, most_tokens: int | None, card: ModelCard) -> list[TextPart | ImagePart]:
    """Return what an input is made of; of a dual encoder it is one part."""
    if not isinstance(part, JoinedPart):
        return [_cut(part, most_tokens)]
    if card.task == "dual-encoder":
        raise ParameterError(f"an input of {len(part.parts)} parts; fake dual encoders take one", "input")
    return [_cut(each, most_tokens) for each in part.parts]


def _token_vectors(part: TextPart | ImagePart) -> npt.NDArray[np.float32]:
    """Return [m, EMBEDDING_SIZE], one for each word of a text, and `TOKENS_PER_IMAGE` for an image."""
    if isinstance(part, TextPart):
        return np.stack([_embedding(word.encode()) for word in part.text.split()])
    content = _content(part)
    return np.stack([_embedding(content + bytes([number])) for number in range(TOKENS_PER_IMAGE)])


def _cut(part: TextPart | ImagePart | TokensPart, most_tokens: int | None) -> TextPart | ImagePart:
    """Return an input as it is read: a text of at most so many words, a word per token."""
    if isinstance(part, ImagePart):
        return part
    words = part.text.split() if isinstance(part, TextPart) else [f"w{token_id}" for token_id in part.token_ids]
    return TextPart(" ".join(words if most_tokens in (None, -1) else words[:most_tokens]))


def _content(part: TextPart | ImagePart) -> bytes:
    return part.text.encode() if isinstance(part, TextPart) else decode_image(part.data).tobytes()


def _embedding(content: bytes) -> npt.NDArray[np.float32]:
    """Return [EMBEDDING_SIZE] float32 of unit length."""
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "little")
    row = np.random.default_rng(seed).standard_normal(EMBEDDING_SIZE)
    return (row / np.linalg.norm(row)).astype(np.float32)
