"""DINOv2 (arXiv 2304.07193), as transformers keeps it: a ViT whose layers scale what they add."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, TowerConfig, VisionConfig, require
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.vit import EncoderMLP, PatchEmbedding, ResampledPositions, tower_heads

_DEFAULTS: Raw = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}


def read_dinov2(raw: Raw) -> VisionConfig:
    """Return the tower of a config.

    Raises:
        UnsupportedConfigError: Gated feed-forwards, or attention without biases.
    """
    full = {**_DEFAULTS, **raw}
    require(full, [("use_swiglu_ffn", False), ("qkv_bias", True)])
    return VisionConfig.read({**full, "intermediate_size": int(full["hidden_size"] * full["mlp_ratio"])}, {})


class _OfOneImage(Weight):
    """A table that the checkpoint keeps for one image, [1, rows, D]."""

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape can fill this weight."""
        return stored[:1] == (1,) and super().fits(stored[1:])

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return [rows, D]."""
        return super().from_stored([part[0] for part in parts])


class _Patches(Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.projection = PatchEmbedding(config, bias=True)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.projection(op, pixel_values)


class _Embeddings(Module):
    """A class token, then patches, and positions that follow an image's shape."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.size, self.side = config.tower.hidden_size, config.patch_size_px
        self.num_rows = config.grid**2 + 1
        self.cls_token = Weight(1, 1, self.size)
        self.patch_embeddings = _Patches(config)
        table = _OfOneImage(self.num_rows, self.size, name="position_embeddings")
        self.positions = ResampledPositions(config.grid, self.size, weight=table)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        patches = self.patch_embeddings(op, pixel_values)
        first = op.Expand(self.cls_token, op.Concat(op.Shape(patches, start=0, end=1), [1, self.size], axis=0))
        grid = op.Div(op.Shape(pixel_values, start=2, end=4), self.side)
        return self.positions(op, op.Concat(first, patches, axis=1), grid)


class _Layer(Module):
    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.norm1, self.norm2 = LayerNorm(size, eps), LayerNorm(size, eps)
        self.query, self.key, self.value = (
            Linear(size, size, rows=rows, name=f"attention.attention.{name}") for name in ("query", "key", "value")
        )
        self.dense = Linear(size, size, rows=rows, name="attention.output.dense")
        self.mlp = EncoderMLP(config, rows=rows)
        self.scale1, self.scale2 = (Weight(size, name=f"layer_scale{number}.lambda1") for number in (1, 2))
        self.heads, self.dialect = tower_heads(config), dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, N, D] from [I, N, D]."""
        normed = self.norm1(op, x)
        query, key, value = self.query(op, normed), self.key(op, normed), self.value(op, normed)
        attended = self.dense(op, self.dialect.attention(op, query, key, value, self.heads, None))
        x = op.Add(x, op.Mul(attended, self.scale1))
        return op.Add(x, op.Mul(self.mlp(op, self.norm2(op, x)), self.scale2))


class _Encoder(Module):
    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        self.layer = ModuleList([_Layer(config, dialect, rows=rows) for _ in range(config.num_layers)])

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        for layer in self.layer:
            x = layer(op, x)
        return x


class Dinov2Tower(Module):
    """Images of any shape to what their class token became, or all of their rows.

    Args:
        config: The tower.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
        pools: Only the class token is wanted.
        norms: What is wanted is normed.
    """

    def __init__(
        self, config: VisionConfig, dialect: Dialect, name: str, *, pools: bool = True, norms: bool = True
    ) -> None:
        super().__init__(name)
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config.tower, dialect, rows=self.embeddings.num_rows)
        self.layernorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps) if norms else None
        self.pools = pools

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, D], or [I, 1 + patches, D], from [I, 3, height, width]."""
        hidden = self.encoder(op, self.embeddings(op, pixel_values))
        wanted = op.Gather(hidden, 0, axis=1) if self.pools else hidden
        return wanted if self.layernorm is None else self.layernorm(op, wanted)
