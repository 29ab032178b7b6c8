"""A request for an answer, how it is sampled and made smaller, and the events that come back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Literal

from bundle.generation import SamplingDefaults
from bundle.grounding import Grounded
from bundle.tools import Tool
from serving.contrast import Contrast
from serving.protocol.messages import Message

FinishReason = Literal["stop", "length"]


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
        adapter: Of the model's, by name, that it is answered through; empty: none. Whoever finds the model sets it,
            where the request names an adapter as its model.
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
    adapter: str = ""


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
