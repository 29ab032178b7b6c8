"""BERT's layers (arXiv 1810.04805) over a question, each of which looks at an image as well (BLIP, 2201.12086)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import TowerConfig
from export.nn.dialect import Dialect
from export.nn.linear import Embedding, Linear, activation
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.vit import tower_heads

_QUESTION_ROWS = 16
"""Words of a usual question, for plans of quantization."""


class _Places(Module):
    def __init__(self, num_rows: int, size: int) -> None:
        super().__init__()
        self.weight = Weight(num_rows, size)

    def forward(self, op: OpBuilder, ids: ir.Value) -> ir.Value:
        """Return the rows of places 0 to Q - 1 for ids [I, Q]."""
        return op.Slice(self.weight, [0], op.Shape(ids, start=1, end=2), [0])


class _Embeddings(Module):
    def __init__(self, config: TowerConfig, vocab_size: int, num_positions: int) -> None:
        super().__init__()
        self.word_embeddings = Embedding(vocab_size, config.hidden_size)
        self.position_embeddings = _Places(num_positions, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps, name="LayerNorm")

    def forward(self, op: OpBuilder, ids: ir.Value) -> ir.Value:
        return self.norm(op, op.Add(self.word_embeddings(op, ids), self.position_embeddings(op, ids)))


class _Attention(Module):
    """Words look at one another, or at rows of an image; normed with what they were.

    Args:
        config: Sizes.
        dialect: How attention is written.
        seen: Rows that are looked at, and their width; None: the words.
    """

    def __init__(self, config: TowerConfig, dialect: Dialect, seen: tuple[int, int] | None) -> None:
        super().__init__()
        size = config.hidden_size
        rows, width = (_QUESTION_ROWS, size) if seen is None else seen
        self.query = Linear(size, size, rows=_QUESTION_ROWS, name="self.query")
        self.key = Linear(width, size, rows=rows, name="self.key")
        self.value = Linear(width, size, rows=rows, name="self.value")
        self.dense = Linear(size, size, rows=_QUESTION_ROWS, name="output.dense")
        self.norm = LayerNorm(size, config.layer_norm_eps, name="output.LayerNorm")
        self.heads, self.dialect = tower_heads(config), dialect

    def forward(self, op: OpBuilder, x: ir.Value, seen: ir.Value) -> ir.Value:
        query, key, value = self.query(op, x), self.key(op, seen), self.value(op, seen)
        attended = self.dialect.attention(op, query, key, value, self.heads, None)
        return self.norm(op, op.Add(self.dense(op, attended), x))


class _Layer(Module):
    def __init__(self, config: TowerConfig, dialect: Dialect, seen: tuple[int, int]) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.attention = _Attention(config, dialect, None)
        self.crossattention = _Attention(config, dialect, seen)
        self.intermediate = Linear(size, inner, rows=_QUESTION_ROWS, name="intermediate.dense")
        self.dense = Linear(inner, size, rows=_QUESTION_ROWS, name="output.dense")
        self.norm = LayerNorm(size, config.layer_norm_eps, name="output.LayerNorm")
        self.hidden_act = config.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value, image: ir.Value) -> ir.Value:
        x = self.crossattention(op, self.attention(op, x, x), image)
        inner = activation(op, self.hidden_act, self.intermediate(op, x))
        return self.norm(op, op.Add(self.dense(op, inner), x))


class _Layers(Module):
    def __init__(self, config: TowerConfig, dialect: Dialect, seen: tuple[int, int]) -> None:
        super().__init__("encoder")
        self.layer = ModuleList([_Layer(config, dialect, seen) for _ in range(config.num_layers)])

    def forward(self, op: OpBuilder, x: ir.Value, image: ir.Value) -> ir.Value:
        for layer in self.layer:
            x = layer(op, x, image)
        return x


class BertReader(Module):
    """A question's ids to hidden states of its words, which have seen the image.

    Args:
        config: Sizes.
        vocab_size: Of the table of words.
        num_positions: Of its longest question.
        dialect: How attention is written.
        seen: Rows of an image, and their width.
        name: Where the checkpoint keeps it.
    """

    def __init__(
        self,
        config: TowerConfig,
        vocab_size: int,
        num_positions: int,
        dialect: Dialect,
        *,
        seen: tuple[int, int],
        name: str,
    ) -> None:
        super().__init__(name)
        self.embeddings = _Embeddings(config, vocab_size, num_positions)
        self.layers = _Layers(config, dialect, seen)

    def forward(self, op: OpBuilder, question_ids: ir.Value, image: ir.Value) -> ir.Value:
        """Return [I, Q, D] of ids [I, Q] and rows of images [I, R, D]."""
        return self.layers(op, self.embeddings(op, question_ids), image)
