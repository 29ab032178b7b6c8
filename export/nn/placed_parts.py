"""What layers of OFA and UnIVAL (arXiv 2202.03052, 2307.16184) have beside their matrices: norms within, and gains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw
from export.nn.linear import Linear, activation
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm

EPS = 1e-5
"""Of PyTorch's LayerNorm, which no config of the model changes."""


class HeadGains(Module):
    """A factor for each head, before the output projection (NormFormer, arXiv 2110.09456)."""

    def __init__(self, num_heads: int) -> None:
        super().__init__("")
        self.c_attn = Weight(num_heads)
        self.num_heads = num_heads

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return x [B, T, H*C], each head times its factor."""
        heads = op.Reshape(x, [0, 0, self.num_heads, -1])
        return op.Reshape(op.Mul(heads, op.Unsqueeze(self.c_attn, [1])), [0, 0, -1])


@dataclass(frozen=True)
class Switches:
    """What checkpoints of this kind have or have not, in decoder and encoder alike.

    Attributes:
        norms_attention: What attention adds is normed (`scale_attn`).
        norms_inner: The inner numbers of a feed-forward are normed (`scale_fc`).
        scales_heads: `scale_heads`.
        scales_residuals: Of feed-forwards (`scale_resids`).
        scale_factor: Of the numbers of a head, in the scale of scores (`attn_scale_factor`).
        bucket_size: Of distances between tokens (`token_bucket_size`).
        hidden_act: Of feed-forwards.
    """

    norms_attention: bool
    norms_inner: bool
    scales_heads: bool
    scales_residuals: bool
    scale_factor: float
    bucket_size: int
    hidden_act: str

    @classmethod
    def read(cls, raw: Raw) -> Switches:
        """Return what a config says; fairseq's names."""
        return cls(
            bool(raw["scale_attn"]),
            bool(raw["scale_fc"]),
            bool(raw["scale_heads"]),
            bool(raw["scale_resids"]),
            float(raw["attn_scale_factor"]),
            int(raw["token_bucket_size"]),
            str(raw["activation_fn"]),
        )

    def score_scale(self, head_size: int) -> float:
        """Return what products of queries and keys are multiplied by, those of places among them."""
        return 1.0 / math.sqrt(head_size * self.scale_factor)

    def gains(self, num_heads: int) -> HeadGains | None:
        """Return the factors of heads, where there are any."""
        return HeadGains(num_heads) if self.scales_heads else None


class PlacedFeedForward(Module):
    """fc2(norm(act(fc1(x)))), and a gain of each number of what it is added to.

    Args:
        size: D.
        inner: Width inside.
        switches: Whether there are the norm and the gains.
        rows: That meet it for one image; None in a decoder.
    """

    def __init__(self, size: int, inner: int, switches: Switches, *, rows: int | None) -> None:
        super().__init__("")
        self.fc1 = Linear(size, inner, rows=rows)
        self.ffn_layernorm = LayerNorm(inner, EPS) if switches.norms_inner else None
        self.fc2 = Linear(inner, size, rows=rows)
        self.w_resid = Weight(size) if switches.scales_residuals else None
        self.final_layer_norm = LayerNorm(size, EPS)
        self.hidden_act = switches.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, T, D] from [B, T, D], the residual added."""
        inner = activation(op, self.hidden_act, self.fc1(op, self.final_layer_norm(op, x)))
        inner = inner if self.ffn_layernorm is None else self.ffn_layernorm(op, inner)
        residual = x if self.w_resid is None else op.Mul(x, self.w_resid)
        return op.Add(residual, self.fc2(op, inner))
