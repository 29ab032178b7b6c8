"""What one architecture has to say: its graphs, and where the checkpoint keeps their weights."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.grounding import KnownGrounding
from bundle.image import ImageSpec
from bundle.layouts.prompt import ImagePrompt, LooksAhead
from bundle.layouts.table import KnownImagePrompt
from bundle.manifest import ComponentName, DecoderDims, Role, Task, TensorSpec
from bundle.states import State
from export.config import Raw, require, sub_config
from export.decoders.causal import CausalDecoder
from export.decoders.decoder import Decoder
from export.decoders.table import load_decoder
from export.embedding import IMAGE_SLOT, StateVectors
from export.found_processor import FoundProcessor
from export.nn.dialect import Dialect
from export.nn.linear import Embedding
from export.nn.module import Module
from export.quantized.bitnet import PackedExperts
from export.quantized.method import QuantizationMethod
from export.quantized.stacked_experts import StackedExperts
from export.quantized.table import load_method

_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class GraphPlan:
    """A graph to be written.

    Attributes:
        module: Called with the inputs and then the states, returns the outputs, the optional ones and then the states
            (one value or a tuple).
        role: What the graph computes.
        inputs: In order.
        outputs: In order.
        states: What it takes and gives beside them.
        optional_outputs: Behind the outputs, in order.
    """

    module: Module
    role: Role
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[State, ...] = ()
    optional_outputs: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True)
class TextTower:
    """What a dual encoder's text side wants of its caller.

    Attributes:
        embedding_size: E.
        vocab_size: Ids are below it.
        max_text_tokens: Longest text.
        scoring: As `bundle.manifest.DualEncoderDims`.
    """

    embedding_size: int
    vocab_size: int
    max_text_tokens: int
    scoring: Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class QuestionReading:
    """What a vision encoder that reads the question beside the image wants of it.

    Attributes:
        vocab_size: Ids are below it.
        max_tokens: Longest question, what its tokenizer puts around it among them.
        folder: Of the checkpoint, with the tokenizer's files; "" where it is the decoder's.
        tasks: As `bundle.manifest.QuestionDims.tasks`.
    """

    vocab_size: int
    max_tokens: int
    folder: str
    tasks: Mapping[str, str] = field(default_factory=dict)


class Family(ABC):
    """One architecture, opened on one config.

    Class attributes:
        sees: Takes images.
        reads_texts: Takes texts, so that there is a tokenizer.
        renames: (pattern, replacement) for `re.sub`, applied in order to every key of the checkpoint; they turn the
            older layouts into the one that the modules are named by.
        unused: Patterns of keys that no graph wants: buffers that hold no weights, and parts that the outputs skip.
        scalars: Keys that go into the manifest and not into a graph.
        image_processor: The class that transformers takes where a processor's files name none.
        lower_cases: Texts are cut into tokens of lower case, whatever the tokenizer's files say (SigLIP).
        cleans: How texts are cleaned before they are cut into tokens, a name of `export.cleaning.CLEANINGS`.
        reads_image_settings: Graphs hold numbers of the image processor's.

    Attributes:
        stated_images: The image processor's settings as the checkpoint states them, where `reads_image_settings`.
    """

    task: ClassVar[Task]
    sees: ClassVar[bool] = True
    reads_texts: ClassVar[bool] = True
    renames: ClassVar[tuple[tuple[str, str], ...]] = ()
    unused: ClassVar[tuple[str, ...]] = (r".*\.position_ids", r".*\.rotary_emb\.inv_freq")
    scalars: tuple[str, ...] = ()
    image_processor: ClassVar[str]
    lower_cases: ClassVar[bool] = False
    cleans: str | None = None
    reads_image_settings: ClassVar[bool] = False

    def __init__(self, config: Raw) -> None:
        self.config = config
        self.stated_images: Raw = {}

    @property
    @abstractmethod
    def image_size_px(self) -> int | None:
        """Side of the images that the vision graph takes; None where it takes any that its processor makes."""

    def check_images(self, spec: ImageSpec) -> None:
        """Check that the preprocessing makes what the vision graph takes.

        Raises:
            UnsupportedConfigError: Images of another size.
        """
        side = self.image_size_px
        if side is not None and (tuple(spec.tile_size_px) != (side, side) or not spec.geometry.has_one_size):
            raise UnsupportedConfigError(
                f"the processor makes images of {spec.tile_size_px} pixels, the vision tower takes {side}; "
                "only towers fed at their own resolution are built"
            )

    def check_tokenizer(self, settings: Mapping[str, Any]) -> None:  # noqa: B027 - most have nothing to check
        """Check `tokenizer_config.json`, of models without a decoder.

        Raises:
            UnsupportedConfigError: It does not go with the model.
        """

    @property
    def image_settings(self) -> Raw:
        """What the model's processor tells its image processor, whatever the files say."""
        return {}

    def own_image_spec(self) -> ImageSpec | None:
        """Return the preprocessing that the config itself states; None: the processor's files do."""
        return None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Token ids are below it."""

    @abstractmethod
    def graphs(self, dialect: Dialect) -> dict[ComponentName, GraphPlan]:
        """Return the bundle's graphs."""

    def stored_weights(self) -> QuantizationMethod:
        """Return how the checkpoint stores its weights."""
        return load_method(self.config)

    def stand_ins(self) -> dict[str, str]:
        """Return checkpoint keys that may be absent, each with the key that then takes its place."""
        return {}

    def is_of_decoder(self, name: str) -> bool:
        """Return whether a weight, by its name in the graphs, belongs to a causal decoder."""
        return False

    def skipped(self) -> tuple[str, ...]:
        """Return `unused`, plus what this config leaves out of the graphs."""
        return self.unused


class VisionLanguage(Family):
    """A vision tower with a connector, and a causal decoder.

    Class attributes:
        text_prefix: Where the checkpoint keeps the decoder.
        can_take_smaller_images: Whether `takes_smaller_images` may be set.
        takes_groups: The vision graph takes groups of a video's frames as well, behind one another as channels.
        caps_logits: transformers' model caps logits where the decoder's config says so.
        looks_ahead: Where the decoder's attention looks forward: what its prompt layout says.
        template_placeholder: What chat templates write for an image, where that is not the image token.
        end_tokens: That end an answer as well as those that the checkpoint's files name.

    Attributes:
        takes_smaller_images: The vision graph takes tiles smaller than full ones as well, squares all of one size.
        embedding: The decoder gives vectors in the place of scores; None: it answers.
    """

    task: ClassVar[Task] = "image-text-to-text"
    text_prefix: ClassVar[str]
    can_take_smaller_images: ClassVar[bool] = False
    caps_logits: ClassVar[bool] = False
    takes_groups: ClassVar[bool] = False
    looks_ahead: ClassVar[LooksAhead] = "nowhere"
    template_placeholder: ClassVar[str | None] = None
    end_tokens: ClassVar[tuple[str, ...]] = ()
    takes_smaller_images: bool = False
    embedding: StateVectors | None = None

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config."""
        return sub_config(self.config, "text_config")

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder, opened on its config.

        Raises:
            UnsupportedConfigError: A setting that is not built, or logits to be capped where the model does not.
        """
        decoder = load_decoder(self.text_config)
        if decoder.logit_softcap and not self.caps_logits:
            raise UnsupportedConfigError(
                f"text_config.final_logit_softcapping {decoder.logit_softcap}: transformers' "
                f"{self.config['model_type']} leaves logits as they are; set it to null"
            )
        decoder.looks_ahead = self.looks_ahead != "nowhere"
        return decoder

    @property
    def vocab_size(self) -> int:
        """V: ids are below it."""
        return self.decoder.config.vocab_size

    @property
    @abstractmethod
    def tokens_per_tile(self) -> int | None:
        """P, features per image or tile; None where that varies with the image's size."""

    @property
    def rows_per_tile(self) -> int | None:
        """Rows of features that the vision graph gives of a tile: its tokens, unless the prompt layout adds some."""
        return self.tokens_per_tile

    @property
    def state_size(self) -> int:
        """D: width of the decoder's states."""
        return self.decoder.config.hidden_size

    @property
    def max_positions(self) -> int:
        """Longest sequence, in tokens, that the checkpoint was made for."""
        return self.decoder.config.max_positions

    @property
    def feature_size(self) -> int:
        """Width of a row of features: the decoder's, unless more of them goes into the decoder by other ways."""
        return self.state_size

    @abstractmethod
    def image_prompt(self, found: FoundProcessor) -> KnownImagePrompt:
        """Return how the model writes images into prompts.

        Raises:
            UnsupportedConfigError: The processor contradicts the config, or a token is not in the vocabulary.
        """

    @abstractmethod
    def vision(self, dialect: Dialect) -> Module:
        """Return the module pixel_values [I, 3, height, width] -> image_features [I, P, D], `tower_outputs` behind.

        Where images keep their shape, all of a run have one size: a graph reads it from the shape of its input.
        """

    @property
    def question(self) -> QuestionReading | None:
        """What `vision` takes beside pixels, as [I, Q] ids of the question; None: nothing."""
        return None

    def with_frames(self, spec: ImageSpec, settings: Raw, source: str) -> ImageSpec:
        """Return the preprocessing with that of a video's frames, where the model has tokens of its own for those.

        Args:
            spec: Of images.
            settings: Of the checkpoint's processor of videos; of images, where the files hold none.
            source: Where they were read, for messages.

        Raises:
            UnsupportedConfigError: A setting that is not reproduced.
        """
        return spec

    def default_template(self, found: FoundProcessor) -> str | None:
        """Return the chat template where the checkpoint holds none; None: it must hold one."""
        return None

    def spoken_tokens(self, found: FoundProcessor, prompt: KnownImagePrompt, ends: Collection[int]) -> Collection[str]:
        """Return the special tokens that belong to answers, by their text; ids of `ends` are no part of any."""
        return ()

    def grounding(self, found: FoundProcessor) -> KnownGrounding | None:
        """Return how boxes stand in the model's answers; None where it says none."""
        return None

    def tower_outputs(self) -> Sequence[TensorSpec]:
        """Return what `vision` tells of its tower's attention, for reducers of visual tokens; nothing by default."""
        return ()

    def image_text(self, prompt: ImagePrompt) -> str:
        """Return what stands for an image in a text, where no chat template writes it."""
        return prompt.image_token

    def input_template(self, found: FoundProcessor, prompt: ImagePrompt) -> str | None:
        """Return how inputs are written whatever template there is, as of a model that embeds; None: as that says."""
        given = None if self.embedding is None else self.embedding.template
        return None if given is None else given.replace(IMAGE_SLOT, self.image_text(prompt))

    def skipped(self) -> tuple[str, ...]:
        """Return `unused`, and the output matrix where no scores are wanted."""
        heads = () if self.embedding is None else (re.escape(_HEAD), *self.embedding.unused)
        return (*super().skipped(), *heads)

    def stored_weights(self) -> QuantizationMethod:
        """Return how the checkpoint stores its weights, where experts may be packed or stacked among others."""
        experts = self.decoder.config.experts
        if experts is None or not (experts.is_ternary or experts.is_stacked):
            return super().stored_weights()
        require(self.config, [("quantization_config", None)])
        return PackedExperts({}) if experts.is_ternary else StackedExperts({})

    def is_of_decoder(self, name: str) -> bool:
        """Return whether a weight is the stack's, the table's or the output matrix's."""
        return name == _HEAD or name.startswith(f"{self.text_prefix}.")

    def stand_ins(self) -> dict[str, str]:
        """Return table and output matrix for each other, where the config ties them."""
        text = self.config.get("text_config") or {}
        if self.config.get("tie_word_embeddings") or text.get("tie_word_embeddings"):
            head, table = _HEAD, f"{self.text_prefix}.embed_tokens.weight"
            return {head: table, table: head}
        return {}

    def graphs(self, dialect: Dialect) -> dict[ComponentName, GraphPlan]:
        """Return the three graphs of docs/bundle-format.md."""
        size = self.state_size
        features = TensorSpec(
            name=tensors.IMAGE_FEATURES,
            dtype="float32",
            shape=("I", (None if self.takes_smaller_images else self.rows_per_tile) or "P", self.feature_size),
        )
        embeds = TensorSpec(name=tensors.INPUTS_EMBEDS, dtype="float32", shape=("B", "T", size))
        ids = TensorSpec(name=tensors.INPUT_IDS, dtype="int64", shape=("B", "T"))
        asked = TensorSpec(name=tensors.QUESTION_IDS, dtype="int64", shape=("I", "Q"))
        seen = self._pixels()
        return {
            "vision_encoder": GraphPlan(
                self.vision(dialect),
                "vision_encoder",
                (seen,) if self.question is None else (seen, asked),
                (features,),
                optional_outputs=tuple(self.tower_outputs()),
            ),
            "embed_tokens": GraphPlan(self.table(), "embed_tokens", (ids,), (embeds,)),
            "decoder": self.decoder_plan(dialect, embeds),
        }

    def _pixels(self) -> TensorSpec:
        """Return the input of the vision graph."""
        given = pixels(None if self.takes_smaller_images else self.image_size_px)
        if not self.takes_groups:
            return given
        return given.model_copy(update={"shape": (given.shape[0], "channels", *given.shape[2:])})

    def table(self) -> Module:
        """Return the module input_ids [B, T] -> inputs_embeds [B, T, D]."""
        sizes, name = self.decoder.config, f"{self.text_prefix}.embed_tokens"
        return Embedding(sizes.vocab_size, sizes.hidden_size, name=name, scale=self.decoder.embedding_scale)

    def decoder_plan(self, dialect: Dialect, embeds: TensorSpec) -> GraphPlan:
        """Return the graph of embeddings, as the table gives them, to scores or vectors."""
        if self.embedding is None:
            return decoder_plan(self.decoder, embeds, CausalDecoder(self.decoder, dialect, self.text_prefix))
        size = self.decoder.config.hidden_size
        head, width = self.embedding.module(size), self.embedding.size(size)
        module = CausalDecoder(self.decoder, dialect, self.text_prefix, head)
        plan = decoder_plan(self.decoder, embeds, module)
        vectors = TensorSpec(name=tensors.TOKEN_EMBEDS, dtype="float32", shape=("B", "N", width))
        return replace(plan, outputs=(vectors,))

    def decoder_dims(self) -> DecoderDims | None:
        """Return the manifest's part on the decoder; None where it does not answer."""
        config = self.decoder.config
        if self.embedding is not None:
            return None
        return DecoderDims(
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            max_positions=config.max_positions,
            window_tokens=self.decoder.window_tokens,
        )


class DualEncoder(Family):
    """An image tower and a text tower into one space.

    Class attributes:
        pads_to_max: Texts are padded to the longest length there is, as in training (SigLIP).
        pad_token_id: What they are padded with, where that is not the tokenizer's own.
        vectors: As `bundle.manifest.DualEncoderDims`; graphs then give [I, P, E] and [B, T, E].
        prompt_template: As `bundle.manifest.DualEncoderDims`.
    """

    task: ClassVar[Task] = "dual-encoder"
    vectors: ClassVar[Literal["one", "tokens"]] = "one"
    prompt_template: ClassVar[str] = "a photo of {}"
    pads_to_max: bool = True
    pad_token_id: int | None = None

    @property
    def num_patches(self) -> int | str:
        """P, vectors of an image where it has several; "P" where that varies."""
        return "P"

    def framed(self, tokenizer: str) -> str:
        """Return a `tokenizer.json` that writes what the model reads around a text."""
        return tokenizer

    @property
    @abstractmethod
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""

    def scores(self, scalar: Callable[[str], float]) -> tuple[float, float]:
        """Return what cosines are multiplied by, and what is added then; `scalar` reads one of `scalars`."""
        bias = scalar("logit_bias") if "logit_bias" in self.scalars else 0.0
        return math.exp(scalar("logit_scale")), bias

    @property
    def vocab_size(self) -> int:
        """Of the text tower."""
        return self.text_tower.vocab_size

    @abstractmethod
    def vision(self, dialect: Dialect) -> Module:
        """Return the module pixel_values [I, 3, height, width] -> image_embeds [I, E]."""

    @abstractmethod
    def text(self, dialect: Dialect) -> Module:
        """Return the module (input_ids, attention_mask) [B, T] -> text_embeds [B, E]."""

    def graphs(self, dialect: Dialect) -> dict[ComponentName, GraphPlan]:
        """Return the two graphs of docs/bundle-format.md."""
        width = self.text_tower.embedding_size
        of_image: tuple[int | str, ...] = ("I", width)
        of_text: tuple[int | str, ...] = ("B", width)
        if self.vectors == "tokens":
            of_image, of_text = ("I", self.num_patches, width), ("B", "T", width)
        images = TensorSpec(name=tensors.IMAGE_EMBEDS, dtype="float32", shape=of_image)
        texts = TensorSpec(name=tensors.TEXT_EMBEDS, dtype="float32", shape=of_text)
        ids = TensorSpec(name=tensors.INPUT_IDS, dtype="int64", shape=("B", "T"))
        mask = TensorSpec(name=tensors.ATTENTION_MASK, dtype="int64", shape=("B", "T"))
        return {
            "vision_encoder": GraphPlan(
                self.vision(dialect), "vision_encoder", (pixels(self.image_size_px),), (images,)
            ),
            "text_encoder": GraphPlan(self.text(dialect), "text_encoder", (ids, mask), (texts,)),
        }


def pixels(side_px: int | None) -> TensorSpec:
    """Return the input of a vision graph; without a side, its images are of any size, one in each run."""
    height, width = (side_px, side_px) if side_px is not None else ("height", "width")
    return TensorSpec(name=tensors.PIXEL_VALUES, dtype="float32", shape=("I", 3, height, width))


def decoder_plan(decoder: Decoder, embeds: TensorSpec, module: Module) -> GraphPlan:
    """Return the decoder's graph of docs/bundle-format.md.

    Args:
        decoder: Sizes, states and inputs of its own.
        embeds: What `embed_tokens` gives.
        module: As `export.decoders.causal.CausalDecoder`.
    """
    config = decoder.config
    indices: list[tuple[str, tuple[int | str, ...]]] = [
        (tensors.POSITION_IDS, (*decoder.axes, "B", "T")),
        (tensors.PAST_LENGTHS, (config.num_length_groups, "B")),
        (tensors.LOGITS_INDICES, ("B", "N")),
    ]
    inputs = tuple(TensorSpec(name=name, dtype="int64", shape=shape) for name, shape in indices)
    logits = TensorSpec(name=tensors.LOGITS, dtype="float32", shape=("B", "N", config.vocab_size))
    taken = (embeds, *inputs, *decoder.sight_inputs, *decoder.inputs)
    return GraphPlan(module, "decoder", taken, (logits,), decoder.states, _last_queries(decoder))


def _last_queries(decoder: Decoder) -> tuple[TensorSpec, ...]:
    """Return what policies choose rows by, of every layer that keeps some (docs/compression.md)."""
    shape = ("B", "W", decoder.config.num_heads * decoder.config.head_size)
    return tuple(
        TensorSpec(name=f"{tensors.LAST_QUERIES}{layer}", dtype="float32", shape=shape)
        for layer in decoder.layers_with_rows
    )
