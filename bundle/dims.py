"""Sizes of a bundle's models that no tensor of its graphs tells, and how texts and vectors of them are treated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bundle.adapters import AdapterDims, AnswerAdapter, InputType
from bundle.fields import Frozen, Lines, Text, TokenId

Pooling = Literal["last", "mean", "tokens"]
"""What of a prompt's states becomes vectors: the last token's, the mean of all, or each by itself."""


class DecoderDims(Frozen):
    """Sizes of a causal decoder that no tensor of its graphs tells.

    Attributes:
        hidden_size: D.
        vocab_size: V.
        max_positions: Longest sequence, in tokens, that the checkpoint was made for.
        window_tokens: Rows that tokens see in layers with the shortest window; None: all layers see all rows. Windows
            count rows, so rows of a longer sequence can be dropped by nobody.
        adapters: That a request chooses as models; the first is number 1 of the graph's input, and 0 is none.
    """

    hidden_size: int = Field(gt=0, le=1 << 20)
    vocab_size: int = Field(gt=0, le=1 << 24)
    max_positions: int = Field(gt=0, le=1 << 27)
    window_tokens: int | None = Field(default=None, gt=0, le=1 << 27)
    adapters: tuple[AnswerAdapter, ...] = Field(default=(), max_length=1 << 10)

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Their names, in order of their numbers."""
        return tuple(adapter.name for adapter in self.adapters)


class VectorSizes(Frozen):
    """How many numbers a model's vectors have.

    Attributes:
        embedding_size: E.
        matryoshka: Numbers to which a vector may be cut, for the model was trained so that its first ones say most
            (Kusupati et al. 2022, section 3); none where it was not.
    """

    embedding_size: int = Field(gt=0, le=1 << 20)
    matryoshka: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(), max_length=64)

    @model_validator(mode="after")
    def _check_cuts(self) -> VectorSizes:
        if wrong := [size for size in self.matryoshka if size > self.embedding_size]:
            raise ValueError(f"vectors of {self.embedding_size} numbers cannot be cut to {wrong[0]}")
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many numbers a vector may have, the most first."""
        return tuple(sorted({self.embedding_size, *self.matryoshka}, reverse=True))


class EmbedderDims(VectorSizes):
    """How the states of a decoder that reads images and texts become vectors.

    Attributes:
        pooling: Which states; "tokens": an input has as many vectors as tokens, compared by late interaction (Khattab
            and Zaharia, arXiv 2004.12832, section 3.3).
        max_positions: Longest prompt, in tokens, that the checkpoint was made for.
        prefixes: What is written before the first text of an input of a type.
        default_type: Of an input of which nothing is said; None: it is of none.
        late_size: M, numbers of each of the vectors that an input has where several are asked for, one for each of its
            tokens, projected; None: they are the tokens' states, of E numbers.
        pools_images: The mean of an input with images is that of the images' tokens and of those that open and close
            them; without images, of all.
        adapters: That the decoder holds, by number, the first for requests that name none; none: there is no choice.
    """

    pooling: Pooling
    max_positions: int = Field(gt=0, le=1 << 27)
    prefixes: dict[InputType, Text] = Field(default_factory=dict)
    default_type: InputType | None = None
    late_size: int | None = Field(default=None, gt=0, le=1 << 20)
    pools_images: bool = False
    adapters: tuple[AdapterDims, ...] = Field(default=(), max_length=1 << 10)

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """By which requests choose."""
        return tuple(adapter.name for adapter in self.adapters)

    def prefix(self, kind: InputType | None, adapter: int = 0) -> str:
        """Return what stands before the first text of an input that runs through an adapter."""
        own = self.adapters[adapter].prefixes if self.adapters else None
        prefixes, stated = self.prefixes if own is None else own, kind or self.default_type
        return "" if stated is None else prefixes.get(stated, "")


class DualEncoderDims(VectorSizes):
    """Sizes and scoring of a model with an image tower and a text tower, or of a text tower alone.

    Attributes:
        max_text_tokens: Longest text; longer ones are refused or cut as the caller asks.
        pad_token_id: Fills texts up to `max_text_tokens` where `pads_to_max` is set.
        pads_to_max: True where the text tower was trained on padded texts (SigLIP).
        scoring: "softmax": probabilities over the candidates (CLIP); "sigmoid": each on its own (SigLIP).
        logit_scale: Multiplier of the cosine, already exponentiated.
        logit_bias: Added after the scale; 0 for CLIP.
        prompt_template: Text around a candidate label, as `bundle.zero_shot` reads it.
        vectors: "one" of an image or a text, or one for each of its "tokens": patches, and tokens that are no padding.
        regions: The vision graph takes `boxes` beside pixels and gives a vector of each, [I, R, E].
        data_experts: Models that this one is of (`bundle.data_experts`), whose vectors stand side by side.
        replaced_tokens: Of a text, behind the one that begins it, in whose places learned prompts stand (MaPLe).
    """

    max_text_tokens: int = Field(gt=0, le=1 << 20)
    pad_token_id: TokenId
    pads_to_max: bool
    scoring: Literal["softmax", "sigmoid"]
    logit_scale: float = Field(allow_inf_nan=False)
    logit_bias: float = Field(default=0.0, allow_inf_nan=False)
    prompt_template: Text = "a photo of {}"
    vectors: Literal["one", "tokens"] = "one"
    regions: bool = False
    data_experts: int = Field(default=1, gt=0, le=64)
    replaced_tokens: int = Field(default=0, ge=0, le=1 << 20)


class PairDims(Frozen):
    """What a model that reads a text and an image together, or two texts, wants of texts.

    Attributes:
        max_text_tokens: Longest text; of two texts, what they take together.
        pad_token_id: Fills shorter ones.
        num_frames: Of a video that is read beside a text, one behind the other as channels; 1: an image is read.
    """

    max_text_tokens: int = Field(gt=0, le=1 << 20)
    pad_token_id: TokenId
    num_frames: int = Field(default=1, gt=0, le=64)


class QuestionDims(Frozen):
    """What a vision encoder takes of the question that it reads beside an image.

    Attributes:
        max_tokens: Longest question, what the tokenizer puts around it among them.
        tokenizer: The bundle's file that cuts it into tokens: the encoder's own, which need not be the decoder's.
        tasks: Questions by the name that users write for them; where one has "{input}", what is asked goes there, and a
            name without stands alone.
        before: Ids that the encoder reads before every question, those in whose places an image's features go among
            them; of no tokenizer's making, and not counted by `max_tokens`.
        prefix: Words that stand before every question, cut into tokens with it.
    """

    max_tokens: int = Field(gt=0, le=1 << 20)
    tokenizer: Text = Field(pattern=r"\.json$")
    tasks: dict[Text, Text] = Field(default_factory=dict, max_length=1 << 10)
    before: tuple[TokenId, ...] = Field(default=(), max_length=1 << 14)
    prefix: Lines = ""
