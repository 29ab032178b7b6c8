"""BART's encoder (arXiv 1910.13461) over rows of an image and the words behind them."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import TowerConfig
from export.nn.dialect import Dialect
from export.nn.linear import Embedding, Linear, activation
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.vit import tower_heads

FIRST_PLACE = 2
"""Row of the table of positions for position 0 (transformers, `BartLearnedPositionalEmbedding`)."""


class _Attention(Module):
    def __init__(self, config: TowerConfig, dialect: Dialect, rows: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(size, size, rows=rows) for _ in range(4))
        self.heads = tower_heads(config)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        query, key, value = self.q_proj(op, x), self.k_proj(op, x), self.v_proj(op, x)
        return self.out_proj(op, self.dialect.attention(op, query, key, value, self.heads, None))


class _Layer(Module):
    """Attention and a feed-forward, each normed with its residual."""

    def __init__(self, config: TowerConfig, dialect: Dialect, rows: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn = _Attention(config, dialect, rows)
        self.self_attn_layer_norm = LayerNorm(size, eps)
        self.fc1 = Linear(size, config.intermediate_size, rows=rows)
        self.fc2 = Linear(config.intermediate_size, size, rows=rows)
        self.final_layer_norm = LayerNorm(size, eps)
        self.hidden_act = config.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        x = self.self_attn_layer_norm(op, op.Add(x, self.self_attn(op, x)))
        inner = activation(op, self.hidden_act, self.fc1(op, x))
        return self.final_layer_norm(op, op.Add(x, self.fc2(op, inner)))


class _Places(Module):
    def __init__(self, num_positions: int, size: int) -> None:
        super().__init__()
        self.weight = Weight(num_positions + FIRST_PLACE, size)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return the rows of places 0 to T - 1 for x [I, T, D]."""
        end = op.Add(op.Shape(x, start=1, end=2), [FIRST_PLACE])
        return op.Slice(self.weight, [FIRST_PLACE], end, [0])


class BartEncoder(Module):
    """Rows of an image and a question's ids to hidden states of both.

    Args:
        config: Sizes.
        vocab_size: Of the table of words.
        num_positions: Of rows and words together.
        dialect: How attention is written.
        rows: Of an image, which most of what it multiplies are.
        name: Where the checkpoint keeps it.
    """

    def __init__(
        self, config: TowerConfig, vocab_size: int, num_positions: int, dialect: Dialect, *, rows: int, name: str
    ) -> None:
        super().__init__(name)
        size = config.hidden_size
        self.embed_tokens = Embedding(vocab_size, size)
        self.embed_positions = _Places(num_positions, size)
        self.layernorm_embedding = LayerNorm(size, config.layer_norm_eps)
        self.layers = ModuleList([_Layer(config, dialect, rows) for _ in range(config.num_layers)])

    def forward(self, op: OpBuilder, image: ir.Value, question_ids: ir.Value) -> ir.Value:
        """Return [I, P + Q, D] of rows [I, P, D] and ids [I, Q]."""
        x = op.Concat(image, self.embed_tokens(op, question_ids), axis=1)
        x = self.layernorm_embedding(op, op.Add(x, self.embed_positions(op, x)))
        for layer in self.layers:
            x = layer(op, x)
        return x
