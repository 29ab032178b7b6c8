"""CLIP's vision tower with adapters beside its feed-forwards (ADEM-VL, as LaVIN and AdaptFormer have them)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import VisionConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.towers.clip import ClipTower

_SHARE = 0.1
"""That an adapter adds of what it makes (the authors' `set_Clip_Adapter`, called with this number alone)."""


class _Adapter(Module):
    """Two matrices without biases, GELU between."""

    def __init__(self, size: int, inner: int, rows: int) -> None:
        super().__init__()
        self.fc1 = Linear(size, inner, rows=rows, bias=False)
        self.fc2 = Linear(inner, size, rows=rows, bias=False)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.fc2(op, op.Gelu(self.fc1(op, x)))


class _Adapted(Module):
    """A feed-forward, and a share of what an adapter makes of the same."""

    def __init__(self, mlp: Module, adapter: _Adapter) -> None:
        super().__init__("")
        self.mlp, self.adapter_mlp = mlp, adapter

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Add(self.mlp(op, x), op.Mul(self.adapter_mlp(op, x), _SHARE))


class AdaptedClipTower(ClipTower):
    """Pixels to the last built layer's states, class token first, normed as what CLIP pools.

    Args:
        config: The tower.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
        num_layers: How many of its layers are built.
        adapter_size: Width inside an adapter.
    """

    def __init__(
        self, config: VisionConfig, dialect: Dialect, name: str, *, num_layers: int, adapter_size: int
    ) -> None:
        super().__init__(config, dialect, name, num_layers=num_layers)
        size, rows = config.tower.hidden_size, self.embeddings.num_rows
        for layer in self.encoder.layers:
            layer.mlp = _Adapted(layer.mlp, _Adapter(size, adapter_size, rows))
        self.post_layernorm = LayerNorm(size, config.tower.layer_norm_eps)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, 1 + patches, V] from [I, 3, height, width]."""
        return self.post_layernorm(op, super().forward(op, pixel_values).states[-1])
