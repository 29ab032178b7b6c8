"""BERT and RoBERTa (arXiv 1810.04805, 1907.11692) as text towers: post-norm layers that look in both directions."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig, require
from export.nn.dialect import Dialect
from export.nn.linear import Embedding, Linear, activation
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.pooler import FirstToken
from export.nn.vit import attention_bias, tower_heads
from graphs.labels import Label

TEXT_DEFAULTS: Raw = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
"""Of BERT."""
ROBERTA_DEFAULTS: Raw = {
    **TEXT_DEFAULTS,
    "vocab_size": 50_265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
"""Of RoBERTa, as its published checkpoints have them."""


@dataclass(frozen=True)
class BertConfig:
    """Sizes of a text tower.

    Attributes:
        tower: Its layers.
        vocab_size: Ids are below it.
        num_positions: Rows of the position table.
        num_segments: Rows of the segment table, of which a single text has the first.
        pad_token_id: Where positions are counted behind padding, as RoBERTa does; None: they are counted from 0.
    """

    tower: TowerConfig
    vocab_size: int
    num_positions: int
    num_segments: int
    pad_token_id: int | None = None

    @classmethod
    def read(cls, raw: Raw, defaults: Raw, *, counts_behind_padding: bool = False) -> BertConfig:
        """Return the tower of a config; `defaults` are transformers' own for keys that the file leaves out.

        Raises:
            UnsupportedConfigError: Positions that are relative, a tower that is causal, or one without padding.
        """
        merged = {**defaults, **raw}
        require(merged, [("position_embedding_type", "absolute"), ("is_decoder", False)])
        if counts_behind_padding and merged["pad_token_id"] is None:
            raise UnsupportedConfigError(
                "text_config.pad_token_id is null; positions are counted behind that of padding"
            )
        return cls(
            tower=TowerConfig.read(raw, defaults),
            vocab_size=int(merged["vocab_size"]),
            num_positions=int(merged["max_position_embeddings"]),
            num_segments=int(merged["type_vocab_size"]),
            pad_token_id=int(merged["pad_token_id"]) if counts_behind_padding else None,
        )

    @property
    def max_tokens(self) -> int:
        """Longest text."""
        return self.num_positions if self.pad_token_id is None else self.num_positions - self.pad_token_id - 1


class _Positions(Module):
    """Learned positions, from 0 or behind that of padding."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.pad_token_id = config.pad_token_id
        label = None if config.pad_token_id is None else Label("table")
        self.weight = Weight(config.num_positions, config.tower.hidden_size, label=label)

    def forward(self, op: OpBuilder, input_ids: ir.Value) -> ir.Value:
        """Return [T, D] or [B, T, D] from [B, T]."""
        if self.pad_token_id is None:
            return op.Slice(self.weight, [0], op.Shape(input_ids, start=1, end=2), [0])
        is_token = op.Cast(op.Not(op.Equal(input_ids, self.pad_token_id)), to=ir.DataType.INT64)
        counted = op.Mul(op.CumSum(is_token, 1), is_token)
        return op.Gather(self.weight, op.Add(counted, self.pad_token_id), axis=0)


class _Segments(Module):
    """A row for each of two texts that stand in one; `are_read`: tokens say theirs, else all are of the first."""

    def __init__(self, config: BertConfig, *, are_read: bool) -> None:
        super().__init__()
        label = Label("table") if are_read else None
        self.weight = Weight(config.num_segments, config.tower.hidden_size, label=label)

    def forward(self, op: OpBuilder, token_type_ids: ir.Value | None) -> ir.Value:
        """Return [1, D], or [B, T, D] from [B, T] int64."""
        if token_type_ids is None:
            return op.Slice(self.weight, [0], [1], [0])
        return op.Gather(self.weight, token_type_ids, axis=0)


class BertEmbeddings(Module):
    """Words, positions and segments, normed.

    Args:
        config: Sizes.
        reads_segments: Tokens say of which text they are; else all are of the first.
    """

    def __init__(self, config: BertConfig, *, reads_segments: bool = False) -> None:
        super().__init__()
        size = config.tower.hidden_size
        self.word_embeddings = Embedding(config.vocab_size, size)
        self.position_embeddings = _Positions(config)
        self.token_type_embeddings = _Segments(config, are_read=reads_segments)
        self.norm = LayerNorm(size, config.tower.layer_norm_eps, name="LayerNorm")

    def forward(self, op: OpBuilder, input_ids: ir.Value, token_type_ids: ir.Value | None = None) -> ir.Value:
        """Return [B, T, D] from [B, T] int64."""
        words = op.Add(self.word_embeddings(op, input_ids), self.token_type_embeddings(op, token_type_ids))
        return self.norm(op, op.Add(words, self.position_embeddings(op, input_ids)))


class BertLayer(Module):
    """Attention and MLP, each normed with its residual, over `rows` tokens of the longest text."""

    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        size, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.query = Linear(size, size, rows=rows, name="attention.self.query")
        self.key = Linear(size, size, rows=rows, name="attention.self.key")
        self.value = Linear(size, size, rows=rows, name="attention.self.value")
        self.attention_dense = Linear(size, size, rows=rows, name="attention.output.dense")
        self.attention_norm = LayerNorm(size, eps, name="attention.output.LayerNorm")
        self.intermediate = Linear(size, inner, rows=rows, name="intermediate.dense")
        self.dense = Linear(inner, size, rows=rows, name="output.dense")
        self.norm = LayerNorm(size, eps, name="output.LayerNorm")
        self.hidden_act = config.hidden_act
        self.heads = tower_heads(config)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value) -> ir.Value:
        """Return [B, T, D] from [B, T, D]; `bias` as for `Dialect.attention`."""
        query, key, value = self.query(op, x), self.key(op, x), self.value(op, x)
        attended = self.dialect.attention(op, query, key, value, self.heads, bias)
        x = self.attention_norm(op, op.Add(self.attention_dense(op, attended), x))
        inner = activation(op, self.hidden_act, self.intermediate(op, x))
        return self.norm(op, op.Add(self.dense(op, inner), x))


class BertEncoder(Module):
    """A stack of layers over `rows` tokens of the longest text."""

    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        self.layer = ModuleList([BertLayer(config, dialect, rows=rows) for _ in range(config.num_layers)])

    def forward(self, op: OpBuilder, x: ir.Value, attention_mask: ir.Value) -> ir.Value:
        """Return [B, T, D] from [B, T, D]; masked tokens are not looked at."""
        bias = attention_bias(op, attention_mask, is_causal=False)
        for layer in self.layer:
            x = layer(op, x, bias)
        return x


class Bert(Module):
    """Token ids to hidden states.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
        reads_segments: As of `BertEmbeddings`.
    """

    def __init__(
        self, config: BertConfig, dialect: Dialect, name: str | None = None, *, reads_segments: bool = False
    ) -> None:
        super().__init__(name)
        self.embeddings = BertEmbeddings(config, reads_segments=reads_segments)
        self.encoder = BertEncoder(config.tower, dialect, rows=config.max_tokens)

    def forward(
        self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value, token_type_ids: ir.Value | None = None
    ) -> ir.Value:
        """Return [B, T, D] from [B, T] ids, mask and, where segments are read, types."""
        return self.encoder(op, self.embeddings(op, input_ids, token_type_ids), attention_mask)


class PooledBert(Bert):
    """The tower, and what its first token became."""

    def __init__(self, config: BertConfig, dialect: Dialect, name: str, *, reads_segments: bool = False) -> None:
        super().__init__(config, dialect, name, reads_segments=reads_segments)
        self.pooler = FirstToken(config.tower.hidden_size)

    def forward(
        self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value, token_type_ids: ir.Value | None = None
    ) -> ir.Value:
        """Return [B, D]; else as `Bert`."""
        return self.pooler(op, super().forward(op, input_ids, attention_mask, token_type_ids))
