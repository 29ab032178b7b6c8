"""Requests for vectors, scores and labels, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bundle.manifest import InputType
from serving.protocol.messages import ImagePart, TextPart


@dataclass(frozen=True)
class TokensPart:
    """A text as the model's own token ids, those that its tokenizer puts around every text among them."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class JoinedPart:
    """Texts and images that are embedded as one."""

    parts: tuple[TextPart | ImagePart, ...]


Granularity = Literal["own", "input", "token"]
EmbedInput = TextPart | ImagePart | TokensPart | JoinedPart


@dataclass(frozen=True)
class EmbedRequest:
    """Texts and images to embed; results come back in the order of `inputs`.

    Attributes:
        dimensions: Numbers of a vector, one of those to which the model's may be cut; None: all.
        truncate_tokens: Longer texts are cut to so many tokens; -1: to as many as the model reads; None: refused.
        input_types: What each input is to what it is compared with; empty: nothing is said of any.
        instruction: What the model is told before every input, for models whose templates have a place for it.
        granularity: Of what there is a vector: "input", "token", or what the model was made for.
        is_raw: Vectors are wanted as the model's graph gives them, not of unit length.
        task: Name of the adapter that inputs run through, of a model that holds several; None: the model's first.
    """

    request_id: str
    model: str
    inputs: tuple[EmbedInput, ...]
    dimensions: int | None = None
    truncate_tokens: int | None = None
    input_types: tuple[InputType, ...] = ()
    instruction: str | None = None
    granularity: Granularity = "own"
    is_raw: bool = False
    task: str | None = None
    traceparent: str = ""


@dataclass(frozen=True)
class EmbedResult:
    """What inputs became, and the tokens that they took.

    Attributes:
        embeddings: [n, E] float32, each row of unit length unless raw; where every token has a vector, [m, E] of each
            of the n inputs.
        prompt_tokens: Of texts; of images too where a decoder reads them.
    """

    embeddings: npt.NDArray[np.float32] | tuple[npt.NDArray[np.float32], ...]
    prompt_tokens: int


@dataclass(frozen=True)
class ScoreRequest:
    """Pairs that a cross-encoder reads together; results come back in their order.

    Attributes:
        truncate_tokens: As of `EmbedRequest`.
        is_raw: Scores are wanted as the model's graph gives them, before the logistic function.
        instruction: What is to be judged, of a decoder that reads pairs.
    """

    request_id: str
    model: str
    pairs: tuple[tuple[EmbedInput, EmbedInput], ...]
    truncate_tokens: int | None = None
    is_raw: bool = False
    instruction: str | None = None
    traceparent: str = ""


@dataclass(frozen=True)
class ScoreResult:
    """[n] float32, the best fit highest and between 0 and 1 unless raw, and the tokens of the texts."""

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
