"""The typed messages between the HTTP application and whatever runs the models.

The application knows only `EngineClient`. In one process that is `serving.engine`'s own client; on a cluster it is a
thin wrapper over Ray Serve deployment handles. Every message is a frozen dataclass of plain data, so that it pickles.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from bundle.frames.options import FrameOptions
from bundle.gates import Gate, Unmeasured
from bundle.generation import SamplingDefaults
from bundle.grounding import Grounded
from bundle.manifest import InputType, Task
from bundle.tools import Tool as Tool
from bundle.tools import ToolCall as ToolCall
from serving.contrast import M3ID as M3ID
from serving.contrast import VCD as VCD
from serving.contrast import Contrast as Contrast
from serving.engine_status import EngineStatus

FinishReason = Literal["stop", "length"]
ONLY_ENGINE = "0"
"""The id of a model's engine where it has just one, in this process."""


@dataclass(frozen=True)
class TextPart:
    """A piece of text in a message."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """An encoded image (PNG, JPEG, ...) in a message; decoded by the engine side, off the engine thread."""

    data: bytes


@dataclass(frozen=True)
class VideoPart:
    """An encoded video in a message, decoded by the engine side in a process of its own.

    Attributes:
        files: One file (GIF, WebP, MP4), or pictures in order, as `options.list_fps` says.
        options: Which frames are looked at, and how they are laid out.
    """

    files: tuple[bytes, ...]
    options: FrameOptions


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; the parts keep their order. The role "tool" tells a call's result.

    Attributes:
        role: Who speaks.
        parts: What is said and shown; none where the assistant only calls.
        calls: That the assistant makes.
    """

    role: Literal["system", "user", "assistant", "tool"]
    parts: tuple[TextPart | ImagePart | VideoPart, ...]
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Structure:
    """What an answer has to be.

    Attributes:
        kind: "json": a value of the JSON schema `text`. "regex": a match of it. "choice": one of the strings in the
            JSON list. "grammar": a word of the grammar, in llguidance's dialect of Lark. "tools": calls of functions,
            as `serving.engine.sampling.tool_grammar` reads them, or the structure that stands in them as `answer`.
        text: As the kind says.
        param: The field of the request that asks for it, for errors.
        is_optional: Where it cannot be followed, the answer is held to nothing.
    """

    kind: Literal["json", "regex", "choice", "grammar", "tools"]
    text: str
    param: str
    is_optional: bool = False

    @property
    def answer(self) -> Structure | None:
        """What an answer is that might call and does not; None where the structure is of calls alone, or of none."""
        found = json.loads(self.text).get("answer") if self.kind == "tools" else None
        return None if found is None else Structure(found["kind"], found["text"], self.param)

    @property
    def holds_text(self) -> bool:
        """Whether what is said is held, and not only what is called."""
        return self.kind != "tools" or self.answer is not None


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. None takes the bundle's own default (`generation.json`), or none where that is silent.

    Attributes:
        max_tokens: Most tokens to generate; where the bundle is silent too, up to the context's end.
        temperature: 0 is greedy, as is None where the bundle is silent too.
        top_p: Nucleus mass in (0, 1].
        top_k: 0 means all.
        seed: None draws a fresh one.
        stop: Generation ends before the first occurrence of any; at most 4.
        min_p: Least chance of a token, as a share of the likeliest one's.
        repetition_penalty: Divides a positive score, and multiplies a negative one, of what prompt or answer hold.
        frequency_penalty: Taken off a token's score for every time it is in the answer.
        presence_penalty: Taken off a token's score once it is in the answer.
        logit_bias: (token id, what is added to its score).
        min_tokens: Tokens before which none that ends the answer is chosen.
        ignores_eos: The model's own end tokens end nothing.
        stop_token_ids: Tokens that end the answer besides the model's own.
        includes_stop: The answer's text holds what stopped it.
        top_logprobs: How many of the likeliest tokens are told with each token; None tells no logprobs at all.
        structure: What the answer has to be.
        contrast: What its scores are held against, which takes a second row of the batch.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    ignores_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    includes_stop: bool = False
    top_logprobs: int | None = None
    structure: Structure | None = None
    contrast: Contrast | None = None

    def filled(self, defaults: SamplingDefaults) -> SamplingParams:
        """Return the sampling with what a request left open taken from its bundle's defaults."""
        left_open = {
            name: value
            for name, value in defaults.model_dump().items()
            if value is not None and getattr(self, name) is None
        }
        return replace(self, **left_open)


@dataclass(frozen=True)
class KVCompression:
    """Which rows of a prompt stay in the cache once it was read.

    Attributes:
        policy: A name of `quant.kv.table.POLICIES`.
        budget: The share of the prompt's rows that is kept, in (0, 1]; 1 keeps all and changes nothing.
    """

    policy: str
    budget: float


@dataclass(frozen=True)
class VisionReduction:
    """Which of an image's tokens a decoder reads.

    Attributes:
        method: Of `quant/visual_tokens`, by name.
        keep: Share of each tile's tokens that is read, in (0, 1]; 1 changes nothing.
    """

    method: str
    keep: float


@dataclass(frozen=True)
class GenerateRequest:
    """One answer to a conversation, or one text to go on with.

    Attributes:
        vision: How images are reduced; None takes the server's default.
        num_choices: Answers wanted; the seed of choice i is the request's plus i.
        priority: Lower begins earlier where requests wait.
        timeout_s: From now on; one that was not begun by then is not begun. None waits for any time.
        tools: Functions that the model is told of, and may call.
        text: What the model goes on with, where there are no messages; no control tokens are read in it.
        kv: None takes the server's default.
        fuses: Its messages are read, and a fused prefix is made of them; what is answered means nothing.
        learns: Its messages are demonstrations, of which a task vector is made; nothing is answered.
        behind: The fused prefix that its messages stand behind, or the task vector that they are answered with, as
            `FinishedEvent.fused` was.
        traceparent: Of the span that it is part of, as W3C writes it; empty where there is none.
    """

    request_id: str
    model: str
    messages: tuple[Message, ...]
    sampling: SamplingParams = SamplingParams()
    num_choices: int = 1
    priority: int = 0
    timeout_s: float | None = None
    tools: tuple[Tool, ...] = ()
    text: str | None = None
    kv: KVCompression | None = None
    vision: VisionReduction | None = None
    fuses: bool = False
    learns: bool = False
    behind: bytes | None = field(default=None, repr=False)
    traceparent: str = ""


@dataclass(frozen=True)
class Usage:
    """Token counts of one request.

    Attributes:
        cached_tokens: Of the prompt, those that were read for an earlier request and not again.
        image_tokens: Of images and frames, before any was left out or merged.
        cached_image_tokens: Those of them whose features were kept from before, and were not encoded again.
        cache_rows_before: Rows that the prompt took in the cache, in each layer.
        cache_rows_after: Those of them that stayed once a KV policy had chosen, or that layers behind a cut were
            given; the mean over layers.
        kept_image_tokens: What the decoder read in their place, part of `prompt_tokens`.
    """

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int = 0
    cached_image_tokens: int = 0
    cached_tokens: int = 0
    cache_rows_before: int = 0
    cache_rows_after: int = 0
    kept_image_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Where one request's time went, in seconds.

    Attributes:
        queue_s: Waiting for a slot.
        preprocess_s: Decoding and resizing images, templating, tokenizing.
        vision_s: In the vision encoder and waiting for it.
        first_token_s: From arrival to the first token.
        total_s: From arrival to the end.
        prefill_s: From the slot to the first token.
        decode_s: From the first token to the last; of several choices, to the last of all.
    """

    queue_s: float = 0.0
    preprocess_s: float = 0.0
    vision_s: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True)
class TokenLogprob:
    """A token, and how likely the model held it before temperature, penalties and whatever else changes its scores.

    Attributes:
        data: The bytes that it stands for, which may be a part of a character.
        logprob: Natural logarithm of its chance.
        top: The likeliest tokens in its place, the likeliest first; their own `top` is empty.
    """

    data: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class TokenEvent:
    """A piece of one choice's text.

    Attributes:
        text: May be empty while a multi-byte character or a stop string is undecided.
        token_ids: The tokens that it is of; none of the last piece, which was held back.
        sampled_s: When the tokens were chosen, by the monotonic clock of the engine's machine: only differences tell,
            and they are the engine's own, however slowly a client takes its pieces.
        index: Of the choice.
        logprobs: Of `token_ids`, where they were asked for; none of a token that ended the answer.
        reason: Why the choice ended; its last piece has one, and no other.
        stopped_by: The text of `SamplingParams.stop` that ended it.
        grounded: What the choice says and where that lies, with its last piece; None where the model says no boxes.
        prompt_tokens: Of the request's prompt, told with the first event; 0 with all others.
    """

    text: str
    token_ids: tuple[int, ...]
    sampled_s: float = 0.0
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    reason: FinishReason | None = None
    stopped_by: str | None = None
    grounded: Grounded | None = None
    prompt_tokens: int = 0


@dataclass(frozen=True)
class FinishedEvent:
    """The terminal event of a request that ended well; exactly one, and last.

    Attributes:
        reason: Of the first choice.
        usage: The prompt counted once, the answers all together.
        timings: Of the request.
        fused: Of a request that fuses or learns: what later ones give as `behind`; for the same bundle alone.
        replaced_heads: Of a request that learns: how many attention heads its task vector replaces.
    """

    reason: FinishReason
    usage: Usage
    timings: Timings
    fused: bytes | None = field(default=None, repr=False)
    replaced_heads: int = 0


@dataclass(frozen=True)
class WaitingEvent:
    """Comes before the first token, again and again, while a request waits for a model to be there at all.

    Attributes:
        reason: What it waits for.
    """

    reason: str


GenerateEvent = TokenEvent | FinishedEvent | WaitingEvent


@dataclass(frozen=True)
class TokensPart:
    """A text as the model's own token ids, those that its tokenizer puts around every text among them."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class JoinedPart:
    """Texts and images that are embedded as one."""

    parts: tuple[TextPart | ImagePart, ...]


EmbedInput = TextPart | ImagePart | TokensPart | JoinedPart


@dataclass(frozen=True)
class EmbedRequest:
    """Texts and images to embed; results come back in the order of `inputs`.

    Attributes:
        dimensions: Numbers of a vector, one of those to which the model's may be cut; None: all.
        truncate_tokens: Longer texts are cut to so many tokens; -1: to as many as the model reads; None: refused.
        input_types: What each input is to what it is compared with; empty: nothing is said of any.
        instruction: What the model is told before every input, for models whose templates have a place for it.
    """

    request_id: str
    model: str
    inputs: tuple[EmbedInput, ...]
    dimensions: int | None = None
    truncate_tokens: int | None = None
    input_types: tuple[InputType, ...] = ()
    instruction: str | None = None
    traceparent: str = ""


@dataclass(frozen=True)
class EmbedResult:
    """What inputs became, and the tokens that they took.

    Attributes:
        embeddings: [n, E] float32, each row of unit length; of a model that keeps a vector for every token, [m, E] of
            each of the n inputs.
        prompt_tokens: Of texts; of images too where a decoder reads them.
    """

    embeddings: npt.NDArray[np.float32] | tuple[npt.NDArray[np.float32], ...]
    prompt_tokens: int


@dataclass(frozen=True)
class ScoreRequest:
    """Pairs that a cross-encoder reads together; results come back in their order.

    Attributes:
        truncate_tokens: As of `EmbedRequest`.
    """

    request_id: str
    model: str
    pairs: tuple[tuple[EmbedInput, EmbedInput], ...]
    truncate_tokens: int | None = None
    traceparent: str = ""


@dataclass(frozen=True)
class ScoreResult:
    """[n] float32 between 0 and 1, the best fit highest, and the tokens of the texts."""

    scores: npt.NDArray[np.float32]
    prompt_tokens: int


@dataclass(frozen=True)
class ClassifyRequest:
    """Images to score against candidate labels.

    Attributes:
        templates: Texts that a label stands in, whose mean vector counts; none: the model's own.
    """

    request_id: str
    model: str
    images: tuple[ImagePart, ...]
    labels: tuple[str, ...]
    templates: tuple[str, ...] = ()
    traceparent: str = ""


@dataclass(frozen=True)
class ClassifyResult:
    """[n images, n labels] float32 probabilities (softmax over labels) or per-label scores (sigmoid)."""

    scores: npt.NDArray[np.float32]
    prompt_tokens: int


@dataclass(frozen=True)
class TokenizeRequest:
    """What is to be counted: a conversation, as an answer to it would read it, or a text.

    Attributes:
        text: Where there are no messages.
        adds_special_tokens: With what the tokenizer puts around every text; of a text alone.
        opens_answer: With what opens the assistant's answer; of a conversation alone.
        vision: How its images are reduced; None: as requests that say nothing have it.
    """

    request_id: str
    model: str
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    text: str | None = None
    adds_special_tokens: bool = True
    opens_answer: bool = True
    vision: VisionReduction | None = None


@dataclass(frozen=True)
class TokenizeResult:
    """Ids of tokens, and how the vocabulary writes each."""

    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class DetokenizeRequest:
    """Ids of tokens whose text is wanted."""

    request_id: str
    model: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class ModelCard:
    """What `/v1/models` tells of one served model.

    Attributes:
        is_gated: Whether quality was measured on samples and every gate that could be measured passed; None for fp32,
            its own reference.
        unmeasured: Gates that the samples could not tell of.
        kv_cache: What rows of the cache are stored as; None without a decoder.
        vision_methods: That a request may name in `vision`.
        vision_default: What is done to images where a request does not say; None: nothing.
        kv_policies: That a request may name in `kv`.
        kv_default: What is done to a prompt's rows where a request does not say; None: nothing.
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
    kv_cache: str | None = None
    vision_methods: tuple[str, ...] = ()
    vision_default: VisionReduction | None = None
    kv_policies: tuple[str, ...] = ()
    kv_default: KVCompression | None = None


@dataclass(frozen=True)
class Health:
    """Whether requests can be served now; `reason` says why not.

    Attributes:
        is_ready: Requests are answered.
        reason: Why not, where not.
        model_gauges: Momentary values by model and metric name; of several replicas, of all together.
        replica_gauges: The same of each replica, by model, replica and metric name; empty where there are none.
        is_alive: False when a worker died, or hangs for too long, and only a restart of the process helps; liveness
            probes turn red.
        is_starting: Not ready because models are still being loaded.
    """

    is_ready: bool
    reason: str = ""
    model_gauges: dict[str, dict[str, float]] = field(default_factory=dict)
    is_alive: bool = True
    replica_gauges: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    is_starting: bool = False


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
