"""VLoRA's generator of perceptual weights: an image to low-rank changes of a decoder's matrices."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear, PackedLinear
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm

_NUM_HEADS = 16
"""Of the generator, whatever its width (the authors' `LoRAGenerater`)."""
_EPS = 1e-5
_MLP_RATIO = 4


class PerceptualWeights(Module):
    """Features [I, P, V] to the first matrices of all low-rank changes, [I, r, changes * D] (arXiv 2405.20339).

    Queries, one for each layer that is changed, attend to one another and to the image in blocks of their own for each
    kind of matrix; a linear layer makes of each query a matrix [D, r].

    Args:
        dialect: How attention is written.
        visual_size: V.
        num_patches: P.
        size: Width inside.
        depth: Blocks of each kind.
        kinds: How many kinds of matrices are changed.
        num_layers: That are changed, of the decoder.
        shape: (D, r).
        name: Where the checkpoint keeps it.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        visual_size: int,
        num_patches: int,
        size: int,
        depth: int,
        kinds: int,
        num_layers: int,
        shape: tuple[int, int],
        name: str,
    ) -> None:
        super().__init__(name)
        self.visual_proj = Linear(visual_size, size, rows=num_patches)
        self.pos_embed = Weight(1, num_patches, size)
        self.gen = ModuleList([_Generator(dialect, size, depth, num_layers, num_patches, shape) for _ in range(kinds)])
        self.columns = kinds * num_layers * shape[0]

    def forward(self, op: OpBuilder, features: ir.Value) -> ir.Value:
        """Return [I, r, changes * D]: by kind, then by layer."""
        seen = op.Add(self.visual_proj(op, features), self.pos_embed)
        made = op.Concat(*(generator(op, seen) for generator in self.gen), axis=1)
        return op.Reshape(op.Transpose(made, perm=[0, 3, 1, 2]), [0, 0, self.columns])


class _Generator(Module):
    """Queries through blocks to matrices [I, layers, D, r]."""

    def __init__(
        self, dialect: Dialect, size: int, depth: int, num_layers: int, num_patches: int, shape: tuple[int, int]
    ) -> None:
        super().__init__()
        self.queries = Weight(1, num_layers, size)
        self.decoders = ModuleList([_Block(dialect, size, num_layers, num_patches) for _ in range(depth)])
        self.norm = LayerNorm(size, _EPS)
        self.weights_head = Linear(size, shape[0] * shape[1], rows=num_layers)
        self.size, self.num, self.shape = size, num_layers, shape

    def forward(self, op: OpBuilder, seen: ir.Value) -> ir.Value:
        images = op.Concat(op.Shape(seen, start=0, end=1), [self.num, self.size], axis=0)
        query = op.Expand(self.queries, images)
        for block in self.decoders:
            query = block(op, query, seen)
        return op.Reshape(self.weights_head(op, self.norm(op, query)), [0, 0, *self.shape])


class _Block(Module):
    """Queries attend to one another, then to the image, then pass two layers; each behind a norm and added."""

    def __init__(self, dialect: Dialect, size: int, num_queries: int, num_patches: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (LayerNorm(size, _EPS) for _ in range(3))
        self.own = _Attention(dialect, size, (num_queries, num_queries), "self_attn")
        self.across = _Attention(dialect, size, (num_queries, num_patches), "multihead_attn")
        self.linear1 = Linear(size, _MLP_RATIO * size, rows=num_queries)
        self.linear2 = Linear(_MLP_RATIO * size, size, rows=num_queries)

    def forward(self, op: OpBuilder, query: ir.Value, seen: ir.Value) -> ir.Value:
        normed = self.norm1(op, query)
        query = op.Add(query, self.own(op, normed, normed))
        query = op.Add(query, self.across(op, self.norm2(op, query), seen))
        return op.Add(query, self.linear2(op, op.Gelu(self.linear1(op, self.norm3(op, query)))))


class _Attention(Module):
    """torch's MultiheadAttention: queries, keys and values from one matrix."""

    def __init__(self, dialect: Dialect, size: int, rows: tuple[int, int], name: str) -> None:
        super().__init__(name)
        packed = ("in_proj_weight", "in_proj_bias")
        self.query, self.key, self.value = (
            PackedLinear(size, part, f"{letter}_proj", packed, rows=rows[part > 0]) for part, letter in enumerate("qkv")
        )
        self.out_proj = Linear(size, size, rows=rows[0])
        head = size // _NUM_HEADS
        self.heads, self.dialect = Heads(_NUM_HEADS, _NUM_HEADS, head, float(head) ** -0.5), dialect

    def forward(self, op: OpBuilder, query: ir.Value, seen: ir.Value) -> ir.Value:
        parts = self.query(op, query), self.key(op, seen), self.value(op, seen)
        return self.out_proj(op, self.dialect.attention(op, *parts, self.heads, None))
