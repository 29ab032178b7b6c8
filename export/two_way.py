"""A model that embeds by an encoder in the place of a decoder: it looks both ways and keeps nothing between runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import tokenizers
from onnxscript import OpBuilder

from bundle import tensors
from bundle.manifest import TensorSpec
from bundle.text import Tokenizer
from export.embedding import StateVectors
from export.family import GraphPlan
from export.found_processor import FoundProcessor
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.vit import MASKED
from export.quantized.method import QuantizationMethod
from export.quantized.table import load_method
from export.vision_language import VisionLanguage

_NO_TOKEN = -1
"""Stands for a text's own tokens."""


@dataclass(frozen=True)
class EncoderSizes:
    """What a bundle must know of the encoder.

    Attributes:
        vocab_size: Ids are below it.
        hidden_size: D.
        max_tokens: Longest input.
    """

    vocab_size: int
    hidden_size: int
    max_tokens: int


class TwoWayEmbedder(VisionLanguage):
    """A vision-language model whose bundle has no states; a family puts it before the one whose images it has.

    Its prompt layout says `looks_ahead` "prompt".

    Attributes:
        vectors: How states become vectors; `embedding`, which it sets, is the same.
    """

    vectors: StateVectors

    @property
    @abstractmethod
    def sizes(self) -> EncoderSizes:
        """Of the encoder."""

    @abstractmethod
    def encoder(self, dialect: Dialect) -> Module:
        """Return the module (x [B, T, D], position_ids [B, T], bias [B, 1, T, T]) -> states [B, T, D]."""

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        return self.sizes.vocab_size

    @property
    def state_size(self) -> int:
        """D."""
        return self.sizes.hidden_size

    @property
    def feature_size(self) -> int:
        """Width of a row of features."""
        return self.state_size

    @property
    def max_positions(self) -> int:
        """Longest prompt."""
        return self.sizes.max_tokens

    @property
    def looked_up(self) -> tuple[TensorSpec, ...]:
        """Nothing: an encoder reads embeddings alone."""
        return ()

    def stored_weights(self) -> QuantizationMethod:
        """Return how the checkpoint stores its weights."""
        return load_method(self.config)

    def tower_outputs(self) -> Sequence[TensorSpec]:
        """Return nothing: vectors of all tokens are wanted, and none is left out."""
        return ()

    def stand_ins(self) -> dict[str, str]:
        """Return nothing: there is no output matrix."""
        return {}

    def decoder_plan(self, dialect: Dialect, embeds: TensorSpec) -> GraphPlan:
        """Return the graph of embeddings to vectors, without states."""
        inputs = (
            embeds,
            TensorSpec(name=tensors.POSITION_IDS, dtype="int64", shape=("B", "T")),
            TensorSpec(name=tensors.LOGITS_INDICES, dtype="int64", shape=("B", "N")),
            TensorSpec(name=tensors.SEEN_AROUND, dtype="int64", shape=(2, "B", "T")),
        )
        width = self.vectors.size(self.state_size)
        vectors = TensorSpec(name=tensors.TOKEN_EMBEDS, dtype="float32", shape=("B", "N", width))
        module = _Embedder(self.encoder(dialect), self.vectors.module(self.state_size))
        return GraphPlan(module, "decoder", inputs, (vectors,))

    def decoder_dims(self) -> None:
        """Return None: it does not answer."""
        return


class _Embedder(Module):
    def __init__(self, encoder: Module, head: Module) -> None:
        super().__init__()
        self.text = encoder
        self.head = head

    def forward(
        self, op: OpBuilder, inputs_embeds: ir.Value, position_ids: ir.Value, rows: ir.Value, around: ir.Value
    ) -> ir.Value:
        """Return [B, N, E] of the tokens `rows` [B, N]; `around` as of `bundle.tensors.SEEN_AROUND`."""
        states = self.text(op, inputs_embeds, position_ids, _bias(op, inputs_embeds, around))
        return self.head(op, op.GatherND(states, op.Unsqueeze(rows, [2]), batch_dims=1))


def _bias(op: OpBuilder, inputs_embeds: ir.Value, around: ir.Value) -> ir.Value:
    """Return [B, 1, T, T]: 0 where a token sees another of its own input, and not what is padded behind it."""
    places = op.Range(0, op.Squeeze(op.Shape(inputs_embeds, start=1, end=2), [0]), 1)
    first = op.Sub(places, op.Gather(around, 0, axis=0))
    last = op.Add(places, op.Gather(around, 1, axis=0))
    is_behind = op.GreaterOrEqual(places, op.Unsqueeze(first, [1, 3]))
    is_before = op.LessOrEqual(places, op.Unsqueeze(last, [1, 3]))
    return op.Where(op.And(is_behind, is_before), 0.0, MASKED)


def around_text(found: FoundProcessor) -> tuple[str, str]:
    """Return the tokens that a tokenizer puts before and behind every text, as a template writes them."""
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(found.vocabulary.text))
    around = tokenizer.with_special_tokens([_NO_TOKEN])
    place = around.index(_NO_TOKEN)
    before, behind = around[:place], around[place + 1 :]
    return "".join(map(tokenizer.piece, before)), "".join(map(tokenizer.piece, behind))
