"""The encoder of OFA and UnIVAL (arXiv 2202.03052, 2307.16184) over places of a map and the words behind them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.dialect import Dialect, Heads
from export.nn.linear import Embedding, Linear
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.placed_parts import EPS, PlacedFeedForward, Switches
from export.nn.placed_scores import MOST_APART, image_distances, token_distances
from graphs.labels import Label

_TEXT, _IMAGE = 0, 1
"""Rows of the table of kinds."""


@dataclass(frozen=True)
class EncoderSizes:
    """An encoder.

    Attributes:
        size: D.
        inner_size: Of feed-forwards.
        num_layers: As it says.
        num_heads: H.
        vocab_size: Of the table of words.
        num_positions: Rows of the table of places of words.
        num_kinds: Rows of the table of kinds, the first two text and image; 0: there is none.
        grid: Places along one side of a map.
        image_bucket_size: Places along one side that the tables of images know.
        norms_words: Embeddings of words are normed.
        norms_image: Rows of an image are normed.
        adds_places: Places are added to both as well.
        scale: Of embeddings and rows.
    """

    size: int
    inner_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    num_positions: int
    num_kinds: int
    grid: int
    image_bucket_size: int
    norms_words: bool
    norms_image: bool
    adds_places: bool
    scale: float


@dataclass(frozen=True)
class Encoded:
    """What the encoder made.

    Attributes:
        states: [I, P + Q, D].
        places: [P + Q, D], normed, which the decoder's attention compares places by.
    """

    states: ir.Value
    places: ir.Value


class _Table(Module):
    def __init__(self, num_rows: int, size: int, name: str | None = None) -> None:
        super().__init__(name)
        self.weight = Weight(num_rows, size, label=Label("constant table"))

    def forward(self, op: OpBuilder, rows: ir.Value) -> ir.Value:
        return op.Gather(self.weight, rows, axis=0)


class _Distances(Module):
    """What each head of a layer adds to a score by how far two words, or two places of a map, are apart."""

    def __init__(self, sizes: EncoderSizes, bucket_size: int) -> None:
        super().__init__("")
        sides = 2 * sizes.image_bucket_size - 1
        self.token_rel_pos_table = _Table(2 * bucket_size - 1, sizes.num_heads)
        # three more of places that are no map's (OFA's `image_num_rel_dis`)
        self.image_rel_pos_table = _Table(sides * sides + 3, sizes.num_heads)

    def forward(self, op: OpBuilder, words: ir.Value, places: ir.Value) -> ir.Value:
        """Return [H, P + Q, P + Q] of buckets [Q, Q] and [P, P], 0 between an image and a word."""
        of_words = op.Transpose(self.token_rel_pos_table(op, words), perm=[2, 0, 1])
        of_image = op.Transpose(self.image_rel_pos_table(op, places), perm=[2, 0, 1])
        num_words, num_places = op.Shape(words, start=0, end=1), op.Shape(places, start=0, end=1)
        heads = op.Shape(of_words, start=0, end=1)
        nothing = op.Expand(0.0, op.Concat(heads, num_places, num_words, axis=0))
        above = op.Concat(of_image, nothing, axis=2)
        return op.Concat(above, op.Concat(op.Transpose(nothing, perm=[0, 2, 1]), of_words, axis=2), axis=1)


class _Attention(Module):
    def __init__(self, sizes: EncoderSizes, switches: Switches, dialect: Dialect, rows: int) -> None:
        super().__init__()
        size, head = sizes.size, sizes.size // sizes.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(size, size, rows=rows) for _ in range(4))
        self.gains = switches.gains(sizes.num_heads)
        self.heads = Heads(sizes.num_heads, sizes.num_heads, head, switches.score_scale(head))
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value) -> ir.Value:
        """Return [I, L, D] from [I, L, D]; `bias` [1, H, L, L]."""
        query, key, value = self.q_proj(op, x), self.k_proj(op, x), self.v_proj(op, x)
        attended = self.dialect.attention(op, query, key, value, self.heads, bias)
        return self.out_proj(op, attended if self.gains is None else self.gains(op, attended))


class _Layer(Module):
    """Attention and a feed-forward, each behind a norm and with its residual."""

    def __init__(self, sizes: EncoderSizes, switches: Switches, dialect: Dialect, rows: int) -> None:
        super().__init__()
        self.self_attn = _Attention(sizes, switches, dialect, rows)
        self.self_attn_layer_norm = LayerNorm(sizes.size, EPS)
        self.attn_ln = LayerNorm(sizes.size, EPS) if switches.norms_attention else None
        self.feed_forward = PlacedFeedForward(sizes.size, sizes.inner_size, switches, rows=rows)
        self.distances = _Distances(sizes, switches.bucket_size)

    def forward(self, op: OpBuilder, x: ir.Value, scores: ir.Value, words: ir.Value, places: ir.Value) -> ir.Value:
        """Return [I, L, D] from [I, L, D], `scores` [H, L, L] of places and the buckets of both kinds."""
        bias = op.Unsqueeze(op.Add(scores, self.distances(op, words, places)), [0])
        attended = self.self_attn(op, self.self_attn_layer_norm(op, x), bias)
        x = op.Add(x, attended if self.attn_ln is None else self.attn_ln(op, attended))
        return self.feed_forward(op, x)


class PlacedEncoder(Module):
    """Rows of an image and a question's ids to hidden states of both.

    Args:
        sizes: As it says.
        switches: What layers have beside their matrices.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, sizes: EncoderSizes, switches: Switches, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        size, rows = sizes.size, sizes.grid**2
        self.embed_tokens = Embedding(sizes.vocab_size, size, scale=sizes.scale)
        self.type_embedding = _Table(sizes.num_kinds, size) if sizes.num_kinds else None
        self.layernorm_embedding = LayerNorm(size, EPS) if sizes.norms_words else None
        self.patch_layernorm_embedding = LayerNorm(size, EPS) if sizes.norms_image else None
        self.embed_positions = _Table(sizes.num_positions, size)
        self.embed_image_positions = _Table(sizes.image_bucket_size**2 + 1, size)
        self.pos_ln, self.image_pos_ln = LayerNorm(size, EPS), LayerNorm(size, EPS)
        self.pos_q_linear, self.pos_k_linear = (Linear(size, size, rows=rows) for _ in range(2))
        self.layers = ModuleList([_Layer(sizes, switches, dialect, rows) for _ in range(sizes.num_layers)])
        self.layer_norm = LayerNorm(size, EPS)
        self.sizes = sizes
        self.scale = switches.score_scale(size // sizes.num_heads)
        self.buckets = token_distances(switches.bucket_size)

    def forward(self, op: OpBuilder, image: ir.Value, question_ids: ir.Value) -> Encoded:
        """Return what is made of rows [I, P, D] and ids [I, Q]."""
        grid, bucket = self.sizes.grid, self.sizes.image_bucket_size
        order = op.Range(0, op.Squeeze(op.Shape(question_ids, start=1, end=2), [0]), 1)
        of_words = self.embed_positions(op, order)
        spots = (np.arange(grid)[:, None] * bucket + np.arange(grid) + 1).reshape(-1)
        of_image = self.embed_image_positions(op, op.initializer(ir.tensor(spots.astype(np.int64)), "image_places"))
        words = self._entered(op, self.embed_tokens(op, question_ids), of_words, _TEXT, self.layernorm_embedding)
        scaled = image if self.sizes.scale == 1.0 else op.Mul(image, self.sizes.scale)
        seen = self._entered(op, scaled, of_image, _IMAGE, self.patch_layernorm_embedding)
        places = op.Concat(self.image_pos_ln(op, of_image), self.pos_ln(op, of_words), axis=0)
        x, scores = op.Concat(seen, words, axis=1), self._scores(op, places)
        apart = op.Add(op.Sub(op.Unsqueeze(order, [1]), order), MOST_APART - 1)
        tokens = op.Gather(op.initializer(ir.tensor(self.buckets), "token_distances"), apart)
        spread = op.initializer(ir.tensor(image_distances(bucket, grid, grid)), "image_distances")
        for layer in self.layers:
            x = layer(op, x, scores, tokens, spread)
        return Encoded(self.layer_norm(op, x), places)

    def _entered(self, op: OpBuilder, x: ir.Value, places: ir.Value, kind: int, norm: LayerNorm | None) -> ir.Value:
        x = op.Add(x, places) if self.sizes.adds_places else x
        x = x if self.type_embedding is None else op.Add(x, self.type_embedding(op, [kind]))
        return x if norm is None else norm(op, x)

    def _scores(self, op: OpBuilder, places: ir.Value) -> ir.Value:
        """Return [H, L, L] what places [L, D] add to scores."""
        heads = [0, self.sizes.num_heads, -1]
        queries = op.Transpose(op.Reshape(self.pos_q_linear(op, places), heads), perm=[1, 0, 2])
        keys = op.Transpose(op.Reshape(self.pos_k_linear(op, places), heads), perm=[1, 2, 0])
        return op.Mul(op.MatMul(queries, keys), self.scale)
