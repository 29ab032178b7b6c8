"""Transformer blocks as open_clip and OpenAI's CLIP keep them: queries, keys and values in one matrix."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import TowerConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear, PackedLinear, activation
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.vit import tower_heads
from graphs.labels import Label

PACKED = ("attn.in_proj_weight", "attn.in_proj_bias")


class ResidualBlock(Module):
    """Pre-norm attention and MLP, each with its residual, over `rows` vectors of one image or text.

    Args:
        config: The tower.
        dialect: How attention is written.
        rows: Vectors of one image or of the longest text.
        scales: What each adds is multiplied by a learned number per channel.
    """

    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int, scales: bool) -> None:
        super().__init__()
        size, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.ln_1 = LayerNorm(size, eps)
        self.query = PackedLinear(size, 0, "attn.q_proj", PACKED, rows=rows)
        self.key = PackedLinear(size, 1, "attn.k_proj", PACKED, rows=rows)
        self.value = PackedLinear(size, 2, "attn.v_proj", PACKED, rows=rows)
        self.out_proj = Linear(size, size, rows=rows, name="attn.out_proj")
        self.ln_2 = LayerNorm(size, eps)
        self.c_fc = Linear(size, inner, rows=rows, name="mlp.c_fc")
        self.c_proj = Linear(inner, size, rows=rows, name="mlp.c_proj")
        self.scale_1 = Weight(size, name="ls_1.gamma") if scales else None
        self.scale_2 = Weight(size, name="ls_2.gamma") if scales else None
        self.hidden_act = config.hidden_act
        self.heads = tower_heads(config)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        """Return [B, T, D] from [B, T, D]; `bias` as for `Dialect.attention`."""
        normed = self.ln_1(op, x)
        query, key, value = self.query(op, normed), self.key(op, normed), self.value(op, normed)
        attended = self.out_proj(op, self.dialect.attention(op, query, key, value, self.heads, bias))
        x = op.Add(x, attended if self.scale_1 is None else op.Mul(attended, self.scale_1))
        inner = activation(op, self.hidden_act, self.c_fc(op, self.ln_2(op, x)))
        more = self.c_proj(op, inner)
        return op.Add(x, more if self.scale_2 is None else op.Mul(more, self.scale_2))


class ResidualBlocks(Module):
    """A stack of blocks; arguments as of `ResidualBlock`."""

    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int, scales: bool) -> None:
        super().__init__("transformer")
        blocks = [ResidualBlock(config, dialect, rows=rows, scales=scales) for _ in range(config.num_layers)]
        self.resblocks = ModuleList(blocks)

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None = None) -> ir.Value:
        """Return [B, T, D] from [B, T, D]."""
        for block in self.resblocks:
            x = block(op, x, bias)
        return x


class Projection(Module):
    """A matrix that is kept as it multiplies, [in, out], over the one vector of an image or text."""

    def __init__(self, size: int, embedding_size: int, name: str) -> None:
        super().__init__("")
        self.weight = Weight(size, embedding_size, name=name, label=Label("linear", 1))

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, E] from [B, D]."""
        return op.MatMul(x, self.weight)
