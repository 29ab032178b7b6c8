"""The Q-Former (BLIP-2, arXiv 2301.12597, section 3.1): learned queries that look at each other and at an image.

InstructBLIP's (arXiv 2305.06500, section 2.3) has the question beside its queries: they look at its words too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, TowerConfig, require
from export.nn.bert import TEXT_DEFAULTS
from export.nn.dialect import Dialect
from export.nn.linear import Embedding, Linear, activation
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.vit import tower_heads

DEFAULTS: Raw = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "cross_attention_frequency": 2,
}
_TO_THE_END = 2**31 - 1


@dataclass(frozen=True)
class QFormerConfig:
    """Sizes of a Q-Former.

    Attributes:
        layers: Widths and depth.
        image_every: One in so many layers looks at the image, the first among them.
        image_size: Width of a patch.
        num_queries: Q.
        vocab_size: Of the question's words; 0 where none is read.
        num_positions: Of its words; 0 where none is read.
    """

    layers: TowerConfig
    image_every: int
    image_size: int
    num_queries: int
    vocab_size: int = 0
    num_positions: int = 0

    @classmethod
    def read(cls, raw: Raw, image_size: int, num_queries: int) -> QFormerConfig:
        """Return the Q-Former of a config that sees images alone.

        Raises:
            UnsupportedConfigError: It reads text beside its queries.
        """
        require(raw, [("use_qformer_text_input", False), ("position_embedding_type", "absolute")])
        every = int({**DEFAULTS, **raw}["cross_attention_frequency"])
        return cls(TowerConfig.read(raw, DEFAULTS), every, image_size, num_queries)

    def reading(self, raw: Raw) -> QFormerConfig:
        """Return it with words, of which the config tells as BERT's does."""
        words = {**TEXT_DEFAULTS, **raw}
        return replace(self, vocab_size=int(words["vocab_size"]), num_positions=int(words["max_position_embeddings"]))


class _Looking(Module):
    """Queries, keys and values of one attention; the last two of an image's patches where their width is given."""

    def __init__(self, config: QFormerConfig, dialect: Dialect, *, image_rows: int | None) -> None:
        super().__init__()
        size, rows = config.layers.hidden_size, config.num_queries
        seen_size, seen_rows = (size, rows) if image_rows is None else (config.image_size, image_rows)
        self.query = Linear(size, size, rows=rows)
        self.key = Linear(seen_size, size, rows=seen_rows)
        self.value = Linear(seen_size, size, rows=seen_rows)
        self.heads = tower_heads(config.layers)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value, seen: ir.Value) -> ir.Value:
        query, key, value = self.query(op, x), self.key(op, seen), self.value(op, seen)
        return self.dialect.attention(op, query, key, value, self.heads, None)


class _Added(Module):
    """A matrix, added to what came before, and a norm of the sum (BERT, arXiv 1810.04805)."""

    def __init__(self, config: QFormerConfig, in_size: int) -> None:
        super().__init__()
        size = config.layers.hidden_size
        self.dense = Linear(in_size, size, rows=config.num_queries)
        self.norm = LayerNorm(size, config.layers.layer_norm_eps, name="LayerNorm")

    def forward(self, op: OpBuilder, x: ir.Value, before: ir.Value) -> ir.Value:
        return self.norm(op, op.Add(self.dense(op, x), before))


class _Attention(Module):
    def __init__(self, config: QFormerConfig, dialect: Dialect, *, image_rows: int | None) -> None:
        super().__init__()
        self.attention = _Looking(config, dialect, image_rows=image_rows)
        self.output = _Added(config, config.layers.hidden_size)

    def forward(self, op: OpBuilder, x: ir.Value, seen: ir.Value) -> ir.Value:
        return self.output(op, self.attention(op, x, seen), x)


class _Wider(Module):
    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.dense = Linear(config.layers.hidden_size, config.layers.intermediate_size, rows=config.num_queries)
        self.hidden_act = config.layers.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return activation(op, self.hidden_act, self.dense(op, x))


class _Layer(Module):
    """Attention of queries and words to all of them, of queries alone to the image, and a feed-forward for each.

    Args:
        config: Sizes.
        dialect: How attention is written.
        image_rows: Patches of an image; None: the layer does not look at it.
        keeps_words: It gives the question's words to another layer.
    """

    def __init__(self, config: QFormerConfig, dialect: Dialect, *, image_rows: int | None, keeps_words: bool) -> None:
        super().__init__()
        inner = config.layers.intermediate_size
        self.attention = _Attention(config, dialect, image_rows=None)
        self.crossattention = None if image_rows is None else _Attention(config, dialect, image_rows=image_rows)
        self.intermediate_query, self.output_query = _Wider(config), _Added(config, inner)
        self.intermediate = _Wider(config) if keeps_words else None
        self.output = _Added(config, inner) if keeps_words else None
        self.num_queries = config.num_queries if config.vocab_size else None

    def forward(self, op: OpBuilder, x: ir.Value, image: ir.Value) -> ir.Value:
        """Return [I, Q + W, size] of queries and words, or the queries alone where there are no words after it."""
        attended = self.attention(op, x, x)
        queries = attended if self.num_queries is None else op.Slice(attended, [0], [self.num_queries], [1])
        if self.crossattention is not None:
            queries = self.crossattention(op, queries, image)
        queries = self.output_query(op, self.intermediate_query(op, queries), queries)
        if self.intermediate is None or self.output is None:
            return queries
        words = op.Slice(attended, [self.num_queries], [_TO_THE_END], [1])
        return op.Concat(queries, self.output(op, self.intermediate(op, words), words), axis=1)


class _Layers(Module):
    def __init__(self, config: QFormerConfig, dialect: Dialect, image_rows: int) -> None:
        super().__init__()
        numbers = range(config.layers.num_layers)
        seen = [None if number % config.image_every else image_rows for number in numbers]
        reads, last = config.vocab_size > 0, config.layers.num_layers - 1
        layers = [
            _Layer(config, dialect, image_rows=rows, keeps_words=reads and number < last)
            for number, rows in enumerate(seen)
        ]
        self.layer = ModuleList(layers)

    def forward(self, op: OpBuilder, x: ir.Value, image: ir.Value) -> ir.Value:
        for layer in self.layer:
            x = layer(op, x, image)
        return x


class _Positions(Module):
    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.weight = Weight(config.num_positions, config.layers.hidden_size)

    def forward(self, op: OpBuilder, ids: ir.Value) -> ir.Value:
        """Return [W, size] for [I, W]."""
        return op.Slice(self.weight, [0], op.Shape(ids, start=1, end=2), [0])


class _Embeddings(Module):
    """Queries and the question's words behind them, normed."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        size = config.layers.hidden_size
        self.word_embeddings = Embedding(config.vocab_size, size)
        self.position_embeddings = _Positions(config)
        self.layernorm = LayerNorm(size, config.layers.layer_norm_eps)

    def forward(self, op: OpBuilder, queries: ir.Value, question_ids: ir.Value) -> ir.Value:
        words = op.Add(self.word_embeddings(op, question_ids), self.position_embeddings(op, question_ids))
        return self.layernorm(op, op.Concat(queries, words, axis=1))


class Former(Module):
    """The layers alone, for queries that are made elsewhere: `image_rows` patches of an image are looked at."""

    def __init__(self, config: QFormerConfig, dialect: Dialect, image_rows: int) -> None:
        super().__init__()
        size, eps = config.layers.hidden_size, config.layers.layer_norm_eps
        self.layernorm = None if config.vocab_size else LayerNorm(size, eps)
        self.embeddings = _Embeddings(config) if config.vocab_size else None
        self.encoder = _Layers(config, dialect, image_rows)

    def forward(
        self, op: OpBuilder, queries: ir.Value, image: ir.Value, question_ids: ir.Value | None = None
    ) -> ir.Value:
        """Return [I, Q, size] from queries [I, Q, size] and patches [I, N, image_size]."""
        if self.embeddings is not None and question_ids is not None:
            return self.encoder(op, self.embeddings(op, queries, question_ids), image)
        return self.encoder(op, queries if self.layernorm is None else self.layernorm(op, queries), image)


class QFormer(Module):
    """An image's patches to a fixed number of rows of the decoder's width.

    Args:
        config: Sizes.
        out_size: The decoder's width.
        image_rows: Patches of an image.
        dialect: How attention is written.
        name: Where the checkpoint keeps it, queries and projection beside it.
    """

    def __init__(self, config: QFormerConfig, out_size: int, *, image_rows: int, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.query_tokens = Weight(1, config.num_queries, config.layers.hidden_size)
        self.qformer = Former(config, dialect, image_rows)
        self.language_projection = Linear(config.layers.hidden_size, out_size, rows=config.num_queries)

    def forward(self, op: OpBuilder, image: ir.Value, question_ids: ir.Value | None = None) -> ir.Value:
        """Return [I, Q, out_size] from [I, N, image_size], and [I, W] ids where the config has words."""
        shape = op.Concat(op.Shape(image, start=0, end=1), [1, 1], axis=0)
        queries = op.Expand(self.query_tokens, shape)
        return self.language_projection(op, self.qformer(op, queries, image, question_ids))
