"""What one architecture has to say: its graphs, and where the checkpoint keeps their weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from bundle import tensors
from bundle.manifest import ComponentName, DecoderDims, Role, Task, TensorSpec
from bundle.states import State
from export.config import DecoderConfig, Raw, read_decoder, require, sub_config
from export.nn.decoder import CausalDecoder
from export.nn.dialect import Dialect
from export.nn.linear import Embedding
from export.nn.module import Module
from export.quantized.bitnet import PackedExperts
from export.quantized.method import QuantizationMethod
from export.quantized.table import load_method

_HEAD = "lm_head.weight"
_PARTS: tuple[Literal["key", "value"], ...] = ("key", "value")


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


class Family(ABC):
    """One architecture, opened on one config.

    Class attributes:
        renames: (pattern, replacement) for `re.sub`, applied in order to every key of the checkpoint; they turn the
            older layouts into the one that the modules are named by.
        unused: Patterns of keys that no graph wants: buffers that hold no weights, and parts that the outputs skip.
        scalars: Keys that go into the manifest and not into a graph.
    """

    task: ClassVar[Task]
    renames: ClassVar[tuple[tuple[str, str], ...]] = ()
    unused: ClassVar[tuple[str, ...]] = (r".*\.position_ids", r".*\.rotary_emb\.inv_freq")
    scalars: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Raw) -> None:
        self.config = config

    @property
    @abstractmethod
    def image_size_px(self) -> int:
        """Side of the images that the vision graph takes."""

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
    """

    task: ClassVar[Task] = "image-text-to-text"
    text_prefix: ClassVar[str]

    @cached_property
    def decoder(self) -> DecoderConfig:
        """Sizes of the decoder, which every family keeps in `text_config`."""
        return read_decoder(sub_config(self.config, "text_config"))

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.decoder.vocab_size

    @property
    @abstractmethod
    def tokens_per_tile(self) -> int:
        """P, features per image or tile."""

    @abstractmethod
    def vision(self, dialect: Dialect) -> Module:
        """Return the module pixel_values [I, 3, height, width] -> image_features [I, P, D], `tower_outputs` behind."""

    def tower_outputs(self) -> Sequence[TensorSpec]:
        """Return what `vision` tells of its tower's attention, for reducers of visual tokens; nothing by default."""
        return ()

    def stored_weights(self) -> QuantizationMethod:
        """Return how the checkpoint stores its weights, where ternary experts may be packed among full precision."""
        if self.decoder.experts is None or not self.decoder.experts.is_ternary:
            return super().stored_weights()
        require(self.config, [("quantization_config", None)])
        return PackedExperts({})

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
        size, vocab = self.decoder.hidden_size, self.decoder.vocab_size
        table = Embedding(vocab, size, name=f"{self.text_prefix}.embed_tokens")
        features = TensorSpec(name=tensors.IMAGE_FEATURES, dtype="float32", shape=("I", self.tokens_per_tile, size))
        embeds = TensorSpec(name=tensors.INPUTS_EMBEDS, dtype="float32", shape=("B", "T", size))
        ids = TensorSpec(name=tensors.INPUT_IDS, dtype="int64", shape=("B", "T"))
        return {
            "vision_encoder": GraphPlan(
                self.vision(dialect),
                "vision_encoder",
                (pixels(self.image_size_px),),
                (features,),
                optional_outputs=tuple(self.tower_outputs()),
            ),
            "embed_tokens": GraphPlan(table, "embed_tokens", (ids,), (embeds,)),
            "decoder": decoder_plan(self.decoder, embeds, CausalDecoder(self.decoder, dialect, self.text_prefix)),
        }

    def decoder_dims(self) -> DecoderDims:
        """Return the manifest's part on the decoder."""
        return DecoderDims(
            hidden_size=self.decoder.hidden_size,
            vocab_size=self.decoder.vocab_size,
            max_positions=self.decoder.max_positions,
        )


class DualEncoder(Family):
    """An image tower and a text tower into one space."""

    task: ClassVar[Task] = "dual-encoder"

    @property
    @abstractmethod
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""

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
        images = TensorSpec(name=tensors.IMAGE_EMBEDS, dtype="float32", shape=("I", width))
        texts = TensorSpec(name=tensors.TEXT_EMBEDS, dtype="float32", shape=("B", width))
        ids = TensorSpec(name=tensors.INPUT_IDS, dtype="int64", shape=("B", "T"))
        mask = TensorSpec(name=tensors.ATTENTION_MASK, dtype="int64", shape=("B", "T"))
        return {
            "vision_encoder": GraphPlan(
                self.vision(dialect), "vision_encoder", (pixels(self.image_size_px),), (images,)
            ),
            "text_encoder": GraphPlan(self.text(dialect), "text_encoder", (ids, mask), (texts,)),
        }


def pixels(side_px: int) -> TensorSpec:
    """Return the input of a vision graph."""
    return TensorSpec(name=tensors.PIXEL_VALUES, dtype="float32", shape=("I", 3, side_px, side_px))


def decoder_plan(config: DecoderConfig, embeds: TensorSpec, module: Module) -> GraphPlan:
    """Return the decoder's graph of docs/bundle-format.md.

    Args:
        config: Sizes.
        embeds: What `embed_tokens` gives.
        module: As `export.nn.decoder.CausalDecoder`.
    """
    indices: list[tuple[str, tuple[int | str, ...]]] = [
        (tensors.POSITION_IDS, ("B", "T")),
        (tensors.PAST_LENGTHS, (config.num_length_groups, "B")),
        (tensors.LOGITS_INDICES, ("B", "N")),
    ]
    inputs = tuple(TensorSpec(name=name, dtype="int64", shape=shape) for name, shape in indices)
    logits = TensorSpec(name=tensors.LOGITS, dtype="float32", shape=("B", "N", config.vocab_size))
    return GraphPlan(module, "decoder", (embeds, *inputs), (logits,), _cache(config), _last_queries(config))


def _cache(config: DecoderConfig) -> tuple[State, ...]:
    """Return keys and values of every layer, as transformers.js and Optimum name them."""
    return tuple(
        State(
            input=f"past_key_values.{layer}.{part}",
            output=f"present.{layer}.{part}",
            dtype="float32",
            shape=("B", config.num_kv_heads, "S", config.head_size),
            group=group,
            layer=layer,
            part=part,
        )
        for layer, group in enumerate(config.length_groups)
        for part in _PARTS
    )


def _last_queries(config: DecoderConfig) -> tuple[TensorSpec, ...]:
    """Return what policies choose rows by, of every layer (docs/compression.md)."""
    shape = ("B", "W", config.num_heads * config.head_size)
    return tuple(
        TensorSpec(name=f"{tensors.LAST_QUERIES}{layer}", dtype="float32", shape=shape)
        for layer in range(config.num_layers)
    )
