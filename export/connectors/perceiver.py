"""A perceiver resampler: learned queries that read all patches, a few layers deep (Idefics2, arXiv 2405.02246, 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import RMSNorm


@dataclass(frozen=True)
class PerceiverConfig:
    """Sizes of a resampler.

    Attributes:
        hidden_size: D, of queries and of what they read.
        num_latents: Queries, which are the tokens of an image.
        num_layers: Layers.
        heads: Of queries, and of the keys and values that several share.
        hidden_act: Of the feed-forward.
        rms_norm_eps: Of every norm.
    """

    hidden_size: int
    num_latents: int
    num_layers: int
    heads: Heads
    hidden_act: str
    rms_norm_eps: float

    @property
    def intermediate_size(self) -> int:
        """Width inside the feed-forward, which no config changes."""
        return 4 * self.hidden_size

    @property
    def mlp_bias(self) -> bool:
        """False."""
        return False


class _Attention(Module):
    """Queries from the latents; keys and values from the patches and the latents behind them."""

    def __init__(self, config: PerceiverConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.heads
        self.q_proj = Linear(size, heads.num * heads.size, rows=config.num_latents, bias=False)
        self.k_proj = Linear(size, heads.num_kv * heads.size, rows=rows, bias=False)
        self.v_proj = Linear(size, heads.num_kv * heads.size, rows=rows, bias=False)
        self.o_proj = Linear(heads.num * heads.size, size, rows=config.num_latents, bias=False)
        self.heads = heads
        self.dialect = dialect

    def forward(self, op: OpBuilder, latents: ir.Value, context: ir.Value) -> ir.Value:
        """Return [I, P, D] from latents [I, P, D] and patches [I, N, D]."""
        read = op.Concat(context, latents, axis=1)
        key, value = self._shared(op, self.k_proj(op, read)), self._shared(op, self.v_proj(op, read))
        heads = Heads(self.heads.num, self.heads.num, self.heads.size, self.heads.scale)
        return self.o_proj(op, self.dialect.attention(op, self.q_proj(op, latents), key, value, heads, None))

    def _shared(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return x [I, N, K*C] with every head once for each query head that shares it, [I, N, H*C]."""
        heads = self.heads
        if heads.num == heads.num_kv:
            return x
        split = op.Reshape(x, [0, 0, heads.num_kv, 1, heads.size])
        shape = op.Concat(op.Shape(x, start=0, end=2), [heads.num_kv, heads.num // heads.num_kv, heads.size], axis=0)
        return op.Reshape(op.Expand(split, shape), [0, 0, heads.num * heads.size])


class _Layer(Module):
    def __init__(self, config: PerceiverConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_latents_norm = RMSNorm(size, eps, dialect)
        self.input_context_norm = RMSNorm(size, eps, dialect)
        self.self_attn = _Attention(config, dialect, rows=rows)
        self.post_attention_layernorm = RMSNorm(size, eps, dialect)
        self.mlp = GatedMLP(config, rows=config.num_latents)

    def forward(self, op: OpBuilder, latents: ir.Value, context: ir.Value) -> ir.Value:
        normed = self.input_latents_norm(op, latents)
        latents = op.Add(latents, self.self_attn(op, normed, self.input_context_norm(op, context)))
        return op.Add(latents, self.mlp(op, self.post_attention_layernorm(op, latents)))


class Perceiver(Module):
    """Patches of any number to a fixed number of tokens.

    Args:
        config: Sizes.
        dialect: How attention and norms are written.
        rows: Patches of a usual image.
    """

    def __init__(self, config: PerceiverConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        self.latents = Weight(config.num_latents, config.hidden_size)
        layers = [_Layer(config, dialect, rows=rows) for _ in range(config.num_layers)]
        self.layers = ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dialect)
        self.shape = [config.num_latents, config.hidden_size]

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, P, D] from [I, N, D]."""
        latents = op.Expand(self.latents, op.Concat(op.Shape(x, start=0, end=1), self.shape, axis=0))
        for layer in self.layers:
            latents = layer(op, latents, x)
        return self.norm(op, latents)
