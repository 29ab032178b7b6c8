"""Attention whose heads are gated (Qiu et al., arXiv 2505.06708)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import DecoderConfig
from export.nn.attention import CachedAttention
from export.nn.dialect import CacheRows, Dialect, Lengths
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.rotary import Angles


class GatedAttention(CachedAttention):
    """The query projection gives a gate beside each head's query, whose sigmoid multiplies what the head gives.

    Weights of the norms stand in the order of heads that turn in part (`RopeConfig.head_order`).

    Args:
        config: As of `CachedAttention`, and the rest.
        dialect: The same.
        layer: The same.
        norms: The same.
    """

    def __init__(self, config: DecoderConfig, dialect: Dialect, layer: int, norms: tuple[Module, Module]) -> None:
        super().__init__(config, dialect, layer, norms, has_ordered_norms=True)
        order = _gates_last(config.rope.head_order(config.head_size), config.num_heads, config.head_size)
        self.q_proj = Linear(config.hidden_size, len(order), rows=None, bias=config.qkv_bias, order=order)

    def forward(
        self,
        op: OpBuilder,
        x: ir.Value,
        angles: Angles | None,
        past: CacheRows,
        lengths: Lengths,
        of_queries: Angles | None = None,
    ) -> tuple[ir.Value, CacheRows, ir.Value]:
        """Return what `CachedAttention` does."""
        query, gate = op.Split(self.q_proj(op, x), axis=2, num_outputs=2, _outputs=2)
        projected = query, *self.keys_and_values(op, x)
        attended, present, queries = self.attend(op, projected, angles, past, lengths, of_queries)
        return self.o_proj(op, op.Mul(attended, op.Sigmoid(gate))), present, queries


def _gates_last(order: npt.NDArray[np.int64] | None, num_heads: int, size: int) -> npt.NDArray[np.int64]:
    """Return [2 * heads * C] all queries and then all gates, of outputs in which each head's gate follows its query."""
    of_head = np.arange(size) if order is None else order
    firsts = 2 * size * np.arange(num_heads)[:, None]
    return np.concatenate([(firsts + of_head).reshape(-1), (firsts + size + np.arange(size)).reshape(-1)])
