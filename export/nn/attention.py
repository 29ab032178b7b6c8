"""Attention of a causal decoder: rotated, grouped queries over a cache that it appends to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import DecoderConfig
from export.nn.dialect import CacheRows, Dialect, Heads, Lengths
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.rotary import Angles
from graphs.segments import keys_name, queries_name
from quant.kv.policy import WINDOW_TOKENS

_TO_THE_END = 2**31 - 1


class CachedAttention(Module):
    """Grouped-query attention (Ainslie et al., arXiv 2305.13245) that appends to a cache.

    Args:
        config: Sizes, and which projections have biases.
        dialect: How it is written.
        layer: Its number.
        norms: Of queries and of keys, each over the numbers of one head; None: neither is normed.
        out_name: How the checkpoint names the output projection.
        scale: Of scores; None: 1 / sqrt(C).
        softcap: As of `Heads`.
        out_norm: Of all heads together, before the output projection; None: they are not normed.
        norms_turned: `norms` are of queries and keys that are turned already.
        has_ordered_norms: Weights of the norms stand in the order of heads that turn in part (`RopeConfig.head_order`).
        value_norm: Of values, over the numbers of one head; None: they are not normed.
        values_are_keys: Values are what keys are before these are normed and turned; there is no matrix for them.

    Raises:
        ValueError: Norms of heads that turn in part, in another order.
    """

    def __init__(
        self,
        config: DecoderConfig,
        dialect: Dialect,
        layer: int,
        norms: tuple[Module, Module] | None = None,
        *,
        out_name: str = "o_proj",
        scale: float | None = None,
        softcap: float = 0.0,
        out_norm: Module | None = None,
        norms_turned: bool = False,
        has_ordered_norms: bool = False,
        value_norm: Module | None = None,
        values_are_keys: bool = False,
    ) -> None:
        super().__init__()
        self.layer = layer
        size, heads, kv_heads = config.head_size, config.num_heads, config.num_kv_heads
        order = config.rope.head_order(size)
        if order is not None and norms is not None and not has_ordered_norms:
            raise ValueError("norms of queries and keys whose weights are not in the order of heads that turn in part")
        self.q_proj = Linear(
            config.hidden_size, heads * size, rows=None, bias=config.qkv_bias, order=_of_heads(order, heads)
        )
        self.k_proj = Linear(
            config.hidden_size, kv_heads * size, rows=None, bias=config.qkv_bias, order=_of_heads(order, kv_heads)
        )
        self.values_are_keys = values_are_keys
        if not values_are_keys:
            self.v_proj = Linear(config.hidden_size, kv_heads * size, rows=None, bias=config.qkv_bias)
        self.o_proj = Linear(heads * size, config.hidden_size, rows=None, bias=config.out_bias, name=out_name)
        self.out_norm, self.v_norm = out_norm, value_norm
        self.norms_turned = norms_turned
        self.q_norm: Module | None
        self.k_norm: Module | None
        self.q_norm, self.k_norm = norms or (None, None)
        self.heads = Heads(heads, kv_heads, size, float(size) ** -0.5 if scale is None else scale, softcap)
        self.dialect = dialect

    def forward(
        self,
        op: OpBuilder,
        x: ir.Value,
        angles: Angles | None,
        past: CacheRows,
        lengths: Lengths,
        of_queries: Angles | None = None,
    ) -> tuple[ir.Value, CacheRows, ir.Value]:
        """Return [B, T, D], the cache with T more rows per sequence, and the last queries [B, W, H*C].

        Queries and keys turn by the angles, queries by their own where these are given; None: they do not turn.
        """
        projected = self.q_proj(op, x), *self.keys_and_values(op, x)
        attended, present, queries = self.attend(op, projected, angles, past, lengths, of_queries)
        return self.o_proj(op, attended), present, queries

    def keys_and_values(self, op: OpBuilder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return what x [B, T, D] is projected to, [B, T, K*C] each: keys before they are normed and turned, values."""
        key = self.k_proj(op, x)
        value = key if self.values_are_keys else self.v_proj(op, x)
        return key, self._normed(op, self.v_norm, value, self.heads.num_kv)

    def attend(
        self,
        op: OpBuilder,
        projected: tuple[ir.Value, ir.Value, ir.Value],
        angles: Angles | None,
        past: CacheRows,
        lengths: Lengths,
        of_queries: Angles | None = None,
        bias: ir.Value | None = None,
    ) -> tuple[ir.Value, CacheRows, ir.Value]:
        """Return what heads give [B, T, H*C] of projected queries, keys and values, and the rest as of `forward`.

        `bias` as of `Dialect.cached_attention`.
        """
        query, key = self.turned(op, projected[:2], angles, of_queries)
        attended, present = self.dialect.cached_attention(op, query, key, projected[2], past, lengths, self.heads, bias)
        attended = attended if self.out_norm is None else self.out_norm(op, attended)
        return attended, present, op.Slice(query, [-WINDOW_TOKENS], [_TO_THE_END], [1])

    def turned(
        self,
        op: OpBuilder,
        projected: tuple[ir.Value, ir.Value],
        angles: Angles | None,
        of_queries: Angles | None = None,
    ) -> tuple[ir.Value, ir.Value]:
        """Return projected queries and keys normed and turned, under the names that passes know them by."""
        query, key = projected
        if not self.norms_turned:
            query, key = self._both_normed(op, query, key)
        if angles is not None:
            own = of_queries or angles
            query = self.dialect.rotary(op, query, own.cos, own.sin, self.heads.num)
            key = self.dialect.rotary(op, key, angles.cos, angles.sin, self.heads.num_kv)
        if self.norms_turned:
            query, key = self._both_normed(op, query, key)
        query.name, key.name = queries_name(self.layer), keys_name(self.layer)
        return query, key

    def _both_normed(self, op: OpBuilder, query: ir.Value, key: ir.Value) -> tuple[ir.Value, ir.Value]:
        heads = self.heads
        return self._normed(op, self.q_norm, query, heads.num), self._normed(op, self.k_norm, key, heads.num_kv)

    def _normed(self, op: OpBuilder, norm: Module | None, x: ir.Value, num_heads: int) -> ir.Value:
        """Return x [B, T, heads*C] with every head normed."""
        if norm is None:
            return x
        heads = op.Reshape(x, [0, 0, num_heads, self.heads.size])
        return op.Reshape(norm(op, heads), [0, 0, num_heads * self.heads.size])


def _of_heads(order: npt.NDArray[np.int64] | None, num_heads: int) -> npt.NDArray[np.int64] | None:
    """Return [heads * C] the order of all heads by that of one."""
    if order is None:
        return None
    return (np.arange(num_heads)[:, None] * len(order) + order).reshape(-1)
