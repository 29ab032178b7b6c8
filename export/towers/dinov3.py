"""DINOv3's ViT (arXiv 2508.10104), as transformers keeps it: patches turn by where they stand, and no table is learned.

A patch's place is its middle, from -1 at one edge of an image to 1 at the other, whatever the image's size and shape;
a class token and registers before the patches are not turned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, require
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear, activation
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.patches import Grid, StillPatches, usual_patches
from export.nn.rotary import Angles


@dataclass(frozen=True)
class Dinov3Config:
    """Sizes of the tower.

    Attributes:
        hidden_size: D.
        intermediate_size: Inner width of feed-forwards.
        num_layers: Layers.
        num_heads: Of attention.
        patch_px: Side of a patch.
        num_registers: Learned rows behind the class token.
        hidden_act: Of feed-forwards.
        is_gated: Feed-forwards are gated (ViT-H+, ViT-7B).
        mlp_bias: Feed-forwards have biases.
        biases: Queries, keys, values and outputs of attention have some.
        layer_norm_eps: Of the norms.
        theta: The longest period by which heads turn, over the shortest.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    patch_px: int
    num_registers: int
    hidden_act: str
    is_gated: bool
    mlp_bias: bool
    biases: tuple[bool, bool, bool, bool]
    layer_norm_eps: float
    theta: float

    @property
    def heads(self) -> Heads:
        """Of attention."""
        size = self.hidden_size // self.num_heads
        return Heads(self.num_heads, self.num_heads, size, float(size) ** -0.5)

    @property
    def usual_rows(self) -> int:
        """Vectors of a usual image."""
        return usual_patches(self.patch_px) + 1 + self.num_registers

    @classmethod
    def read(cls, raw: Raw) -> Dinov3Config:
        """Return the tower of a config.

        Raises:
            UnsupportedConfigError: Other channels than three, patches that are no squares, or heads that are no
                multiple of four, half of whose pairs turn by row and half by column.
        """
        require(raw, [("num_channels", 3)])
        size, num_heads, patch = (
            raw.get("hidden_size", 384),
            raw.get("num_attention_heads", 6),
            raw.get("patch_size", 16),
        )
        if isinstance(patch, (list, tuple)):
            patch = patch[0] if len(set(patch)) == 1 else None
        if not isinstance(patch, int) or size % (4 * num_heads):
            raise UnsupportedConfigError(
                f"patch_size {raw.get('patch_size')}, heads of {size} / {num_heads} numbers: built are square patches, "
                "and heads of a multiple of 4"
            )
        rope = raw.get("rope_parameters") or {}
        return cls(
            hidden_size=size,
            intermediate_size=raw.get("intermediate_size", 1536),
            num_layers=raw.get("num_hidden_layers", 12),
            num_heads=num_heads,
            patch_px=patch,
            num_registers=raw.get("num_register_tokens", 0),
            hidden_act=raw.get("hidden_act", "gelu"),
            is_gated=bool(raw.get("use_gated_mlp", False)),
            mlp_bias=bool(raw.get("mlp_bias", True)),
            biases=(
                bool(raw.get("query_bias", True)),
                bool(raw.get("key_bias", False)),
                bool(raw.get("value_bias", True)),
                bool(raw.get("proj_bias", True)),
            ),
            layer_norm_eps=raw.get("layer_norm_eps", 1e-5),
            theta=float(raw.get("rope_theta", rope.get("rope_theta", 100.0))),
        )


class _Embeddings(Module):
    def __init__(self, config: Dinov3Config) -> None:
        super().__init__()
        self.patch_embeddings = StillPatches(config.hidden_size, config.patch_px)
        self.cls_token = Weight(1, 1, config.hidden_size)
        has_some = config.num_registers > 0
        self.register_tokens = Weight(1, config.num_registers, config.hidden_size) if has_some else None
        self.shape = [1 + config.num_registers, config.hidden_size]

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, 1 + registers + patches, D], and the grid of patches."""
        patches, grid = self.patch_embeddings(op, pixel_values)
        before = self.cls_token
        if self.register_tokens is not None:
            before = op.Concat(before, self.register_tokens, axis=1)
        of_each = op.Expand(before, op.Concat(op.Shape(patches, start=0, end=1), self.shape, axis=0))
        return op.Concat(of_each, patches, axis=1), grid


class _Attention(Module):
    def __init__(self, config: Dinov3Config, dialect: Dialect) -> None:
        super().__init__()
        names, size, rows = ("q_proj", "k_proj", "v_proj", "o_proj"), config.hidden_size, config.usual_rows
        self.query, self.key, self.value, self.out = (
            Linear(size, size, rows=rows, bias=bias, name=name) for name, bias in zip(names, config.biases, strict=True)
        )
        self.heads, self.dialect = config.heads, dialect

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        query = self.dialect.rotary(op, self.query(op, x), angles.cos, angles.sin, self.heads.num)
        key = self.dialect.rotary(op, self.key(op, x), angles.cos, angles.sin, self.heads.num)
        return self.out(op, self.dialect.attention(op, query, key, self.value(op, x), self.heads, None))


class _FeedForward(Module):
    def __init__(self, config: Dinov3Config) -> None:
        super().__init__()
        rows, bias = config.usual_rows, config.mlp_bias
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, rows=rows, bias=bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, rows=rows, bias=bias)
        self.hidden_act = config.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.down_proj(op, activation(op, self.hidden_act, self.up_proj(op, x)))


class _Layer(Module):
    def __init__(self, config: Dinov3Config, dialect: Dialect) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.norm1, self.norm2 = LayerNorm(size, eps), LayerNorm(size, eps)
        self.attention = _Attention(config, dialect)
        self.mlp = GatedMLP(config, rows=config.usual_rows) if config.is_gated else _FeedForward(config)
        self.scale1, self.scale2 = (Weight(size, name=f"layer_scale{number}.lambda1") for number in (1, 2))

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        x = op.Add(x, op.Mul(self.attention(op, self.norm1(op, x), angles), self.scale1))
        return op.Add(x, op.Mul(self.mlp(op, self.norm2(op, x)), self.scale2))


class Dinov3Tower(Module):
    """Images of any shape to what their class token became.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: Dinov3Config, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.embeddings = _Embeddings(config)
        self.layer = ModuleList([_Layer(config, dialect) for _ in range(config.num_layers)])
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.config = config

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, D] from [I, 3, height, width]."""
        x, grid = self.embeddings(op, pixel_values)
        angles = self._angles(op, x, grid)
        for layer in self.layer:
            x = layer(op, x, angles)
        return self.norm(op, op.Gather(x, 0, axis=1))

    def _angles(self, op: OpBuilder, x: ir.Value, grid: Grid) -> Angles:
        """Return the angles [I, T, C/2]: half of the pairs of a head turn by row, half by column, a circle is 1."""
        config = self.config
        quarter = config.heads.size // 4
        bands = 2 * math.pi * config.theta ** -(np.arange(quarter) / quarter)
        frequencies = op.initializer(ir.tensor(bands.astype(np.float32)), "patch_frequencies")
        turned = op.Concat(
            *(
                op.Mul(op.Unsqueeze(_middles(op, places, count), [1]), frequencies)
                for places, count in ((grid.rows(op), grid.height), (grid.cols(op), grid.width))
            ),
            axis=1,
        )
        still = np.zeros((1 + config.num_registers, 2 * quarter), np.float32)
        whole = op.Concat(op.initializer(ir.tensor(still), "unturned"), turned, axis=0)
        shape = op.Concat(op.Shape(x, start=0, end=1), [1, 1], axis=0)
        cos, sin = (op.Expand(op.Unsqueeze(each, [0]), shape) for each in (op.Cos(whole), op.Sin(whole)))
        return Angles(cos, sin)


def _middles(op: OpBuilder, places: ir.Value, count: ir.Value) -> ir.Value:
    """Return [N] where the middles of rows or columns stand, of so many from -1 to 1."""
    as_floats = (op.Cast(each, to=ir.DataType.FLOAT) for each in (places, count))
    number, whole = as_floats
    return op.Sub(op.Div(op.Mul(op.Add(number, 0.5), 2.0), whole), 1.0)
