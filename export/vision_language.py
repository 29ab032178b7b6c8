"""What a vision-language model has to say: its tower, its connector, its decoder, and how images stand in prompts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

from bundle import tensors
from bundle.dims import DecoderDims
from bundle.errors import UnsupportedConfigError
from bundle.grounding import KnownGrounding
from bundle.image import ImageSpec
from bundle.layouts.prompt import ImagePrompt, LooksAhead
from bundle.layouts.table import KnownImagePrompt
from bundle.manifest import ComponentName, Task, TensorSpec
from export.config import Raw, require, sub_config
from export.decoders.causal import CausalDecoder
from export.decoders.decoder import Decoder
from export.decoders.table import load_decoder
from export.embedding import IMAGE_SLOT, StateVectors
from export.family import Family, GraphPlan, pixels
from export.found_processor import FoundProcessor
from export.nn.dialect import Dialect
from export.nn.linear import Embedding
from export.nn.module import Module
from export.quantized.bitnet import PackedExperts
from export.quantized.method import QuantizationMethod
from export.quantized.stacked_experts import StackedExperts

_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class QuestionReading:
    """What a vision encoder that reads the question beside the image wants of it.

    Attributes:
        vocab_size: Ids are below it.
        max_tokens: Longest question, what its tokenizer puts around it among them.
        folder: Of the checkpoint, with the tokenizer's files; "" where it is the decoder's.
        tasks: As `bundle.dims.QuestionDims.tasks`.
    """

    vocab_size: int
    max_tokens: int
    folder: str
    tasks: Mapping[str, str] = field(default_factory=dict)


class VisionLanguage(Family):
    """A vision tower with a connector, and a causal decoder.

    Class attributes:
        text_prefix: Where the checkpoint keeps the decoder.
        default_text: The decoder's `model_type` where its part of the config says none; None: it must.
        can_take_smaller_images: Whether `takes_smaller_images` may be set.
        takes_groups: The vision graph takes groups of a video's frames as well, behind one another as channels.
        caps_logits: transformers' model caps logits where the decoder's config says so.
        looks_ahead: Where the decoder's attention looks forward: what its prompt layout says.
        wants_image: There is no prompt without an image: what its prompt layout says.
        template_placeholder: What chat templates write for an image, where that is not the image token.
        reads_vocabulary: Graphs depend on how many tokens the tokenizer has.
        cuts_at_images: Texts around an image are cut into tokens each by itself.
        end_tokens: That end an answer as well as those that the checkpoint's files name.
        opens_once: The model's processor writes its `opening` only where the chat template has not.
        states_prefixes: It embeds as it is, and its checkpoint says what stands before queries and documents.

    Attributes:
        stated_ids: Of the tokenizer's tokens, by their text, where `reads_vocabulary`.
        takes_smaller_images: The vision graph takes tiles smaller than full ones as well, squares all of one size.
        embedding: The decoder gives vectors, in the place of scores or beside them; None: it answers.
    """

    task: ClassVar[Task] = "image-text-to-text"
    text_prefix: ClassVar[str]
    default_text: ClassVar[str | None] = None
    can_take_smaller_images: ClassVar[bool] = False
    caps_logits: ClassVar[bool] = False
    takes_groups: ClassVar[bool] = False
    looks_ahead: ClassVar[LooksAhead] = "nowhere"
    wants_image: ClassVar[bool] = False
    template_placeholder: ClassVar[str | None] = None
    end_tokens: ClassVar[tuple[str, ...]] = ()
    opens_once: ClassVar[bool] = False
    states_prefixes: ClassVar[bool] = False
    reads_vocabulary: ClassVar[bool] = False
    cuts_at_images: ClassVar[bool] = False
    takes_smaller_images: bool = False
    embedding: StateVectors | None = None

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self.stated_ids: Mapping[str, int] = {}

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, with its `model_type`."""
        stated = sub_config(self.config, "text_config")
        return stated if self.default_text is None else {"model_type": self.default_text, **stated}

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
        decoder.skips_text = self.looks_ahead == "all images"
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
    def answers(self) -> bool:
        """Whether the decoder gives the vocabulary's scores."""
        return self.embedding is None or self.embedding.also_answers

    @property
    def own_adapters(self) -> Sequence[str]:
        """The adapters that the checkpoint has in a folder beside its weights, one for each of several tasks."""
        return ()

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

    @property
    def stated_generation(self) -> Raw:
        """What the config itself says of how answers are made, where no `generation_config.json` does."""
        return {}

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end an answer, whatever the files say; none: as those say."""
        return ()

    def own_tokens(self, ids: Mapping[str, int]) -> Mapping[str, int]:
        """Return special tokens that the model was trained with and its tokenizer lacks, with their ids; mostly none.

        Args:
            ids: Of the tokenizer's tokens, by their text.
        """
        return {}

    def answer_ends(self, ids: Collection[str]) -> Collection[str]:
        """Return the tokens that end an answer as well as those that the checkpoint's files name.

        Args:
            ids: Texts of the tokenizer's tokens.
        """
        return self.end_tokens

    def default_template(self, found: FoundProcessor) -> str | None:
        """Return the chat template where the checkpoint holds none; None: it must hold one."""
        return None

    def opening(self, found: FoundProcessor) -> str:
        """Return the words that the model's processor writes before what the chat template makes."""
        return ""

    def spoken_tokens(self, found: FoundProcessor, prompt: KnownImagePrompt, ends: Collection[int]) -> Collection[str]:
        """Return the special tokens that belong to answers, by their text; ids of `ends` are no part of any."""
        return ()

    def grounding(self, found: FoundProcessor) -> KnownGrounding | None:
        """Return how boxes stand in the model's answers; None where it says none."""
        return None

    def before_questions(self, found: FoundProcessor) -> tuple[str, str]:
        """Return what an encoder reads before every question.

        First text with special tokens, those of an image among them ("": nothing but what the tokenizer puts around a
        question), then words that are cut into tokens with the question.
        """
        return "", ""

    def tower_outputs(self) -> Sequence[TensorSpec]:
        """Return what `vision` tells of its tower's attention, for reducers of visual tokens; nothing by default."""
        return ()

    @property
    def tokenizer_home(self) -> str | None:
        """Where the tokenizer is published that a checkpoint's folder lacks; None: it comes with the weights."""
        return None

    def adapted_template(self, text: str) -> str:
        """Return a template of the checkpoint's files as the model's conversations are written by it."""
        return text

    def own_template(self) -> str | None:
        """Return how conversations are written whatever template the checkpoint holds; None: as that says."""
        return None

    def image_text(self, prompt: ImagePrompt) -> str:
        """Return what stands for an image in a text, where no chat template writes it."""
        return prompt.image_token

    def input_template(self, found: FoundProcessor, prompt: ImagePrompt) -> str | None:
        """Return how inputs to be embedded are written; None: as conversations are."""
        given = None if self.embedding is None else self.embedding.template
        return None if given is None else given.replace(IMAGE_SLOT, self.image_text(prompt))

    def skipped(self) -> tuple[str, ...]:
        """Return `unused`, and the output matrix where no scores are wanted."""
        scores = () if self.answers else (r"lm_head\.(?:weight|bias)",)
        return (*super().skipped(), *scores, *(() if self.embedding is None else self.embedding.unused))

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
            "embed_tokens": GraphPlan(self.table(), "embed_tokens", (ids,), (embeds, *self.looked_up)),
            "decoder": self.decoder_plan(dialect, embeds),
        }

    @property
    def looked_up(self) -> tuple[TensorSpec, ...]:
        """What the tables give of a token beside its embedding."""
        return self.decoder.looked_up

    def _pixels(self) -> TensorSpec:
        """Return the input of the vision graph."""
        given = pixels(None if self.takes_smaller_images else self.image_size_px)
        if not self.takes_groups:
            return given
        return given.model_copy(update={"shape": (given.shape[0], "channels", *given.shape[2:])})

    def table(self) -> Module:
        """Return the module input_ids [B, T] -> inputs_embeds [B, T, D], and the decoder's `looked_up` behind."""
        sizes, name = self.decoder.config, f"{self.text_prefix}.embed_tokens"
        return Embedding(sizes.vocab_size, sizes.hidden_size, name=name, scale=self.decoder.embedding_scale)

    def decoder_plan(self, dialect: Dialect, embeds: TensorSpec) -> GraphPlan:
        """Return the graph of embeddings, as the table gives them, to scores or vectors."""
        if self.embedding is None:
            return decoder_plan(self.decoder, embeds, CausalDecoder(self.decoder, dialect, self.text_prefix))
        size = self.decoder.config.hidden_size
        head, width = self.embedding.module(size), self.embedding.size(size)
        vectors = TensorSpec(name=tensors.TOKEN_EMBEDS, dtype="float32", shape=("B", "N", width))
        if self.answers:
            module = CausalDecoder(self.decoder, dialect, self.text_prefix, vectors=head)
            plan = decoder_plan(self.decoder, embeds, module)
            return replace(plan, optional_outputs=(vectors, *plan.optional_outputs))
        late = self.embedding.late
        projected = None if late is None else late.module(size)
        module = CausalDecoder(self.decoder, dialect, self.text_prefix, head, projected)
        plan = replace(decoder_plan(self.decoder, embeds, module), outputs=(vectors,))
        if late is None:
            return plan
        each = TensorSpec(name=tensors.LATE_EMBEDS, dtype="float32", shape=("B", "N", late.size))
        return replace(plan, optional_outputs=(each, *plan.optional_outputs))

    def decoder_dims(self) -> DecoderDims | None:
        """Return the manifest's part on the decoder; None where it does not answer."""
        config = self.decoder.config
        if not self.answers:
            return None
        return DecoderDims(
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            max_positions=config.max_positions,
            window_tokens=self.decoder.window_tokens,
        )


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
    num_heads = decoder.config.num_heads
    return tuple(
        TensorSpec(
            name=f"{tensors.LAST_QUERIES}{layer}",
            dtype="float32",
            shape=("B", "W", num_heads * decoder.head_size_of(layer)),
        )
        for layer in decoder.layers_with_rows
    )
