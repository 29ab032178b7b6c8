"""Attention of a layer that has no keys and values of its own (docs/decisions/0056)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import DecoderConfig
from export.nn.dialect import CacheRows, Dialect, Heads, Lengths
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import RMSNorm
from export.nn.rotary import Angles


class SharedAttention(Module):
    """Queries, normed by head, over the keys and values of another layer.

    Args:
        config: Sizes of the layer.
        dialect: How it is written.
        scale: Of scores.
    """

    def __init__(self, config: DecoderConfig, dialect: Dialect, scale: float) -> None:
        super().__init__()
        size, width = config.head_size, config.num_heads * config.head_size
        self.q_proj = Linear(config.hidden_size, width, rows=None, bias=config.qkv_bias)
        self.o_proj = Linear(width, config.hidden_size, rows=None, bias=config.out_bias)
        self.q_norm = RMSNorm(size, config.rms_norm_eps, dialect)
        self.heads = Heads(config.num_heads, config.num_kv_heads, size, scale)
        self.dialect = dialect

    def forward(
        self, op: OpBuilder, x: ir.Value, angles: Angles, rows: CacheRows, lengths: Lengths
    ) -> tuple[ir.Value, None, None]:
        """Return [B, T, D]; it leaves no rows, and its queries choose none."""
        heads = op.Reshape(self.q_proj(op, x), [0, 0, self.heads.num, self.heads.size])
        query = op.Reshape(self.q_norm(op, heads), [0, 0, self.heads.num * self.heads.size])
        query = self.dialect.rotary(op, query, angles.cos, angles.sin, self.heads.num)
        return self.o_proj(op, self.dialect.attention_over(op, query, rows, lengths, self.heads)), None, None
