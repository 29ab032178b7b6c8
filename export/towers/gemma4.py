"""Gemma 4's vision tower (google/gemma-4-E2B): images of any shape, turned by column and row, squares averaged."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, require
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear, activation
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import BareRMSNorm, RMSNorm
from export.nn.patches import FlattenedPatches, Grid, patch_angles
from export.nn.rotary import Angles
from graphs.labels import Label

DEFAULTS: Raw = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "pooling_kernel_size": 3,
    "patch_size": 16,
    "position_embedding_size": 10_240,
    "use_clipped_linears": False,
    "standardize": False,
}
_ROPE: Raw = {"rope_type": "axial", "rope_theta": 100.0}
_ROPE_TYPES = ("axial", "default")
"""What configs call angles by column and row: transformers', and those of first releases."""
_USUAL_TOKENS = 256
"""Of a square image, where an image takes 280 at most."""


@dataclass(frozen=True)
class Gemma4TowerConfig:
    """Sizes of the tower.

    Attributes:
        hidden_size: D.
        intermediate_size: Of the feed-forward.
        hidden_act: Of its gate.
        num_layers: Depth.
        heads: Of every layer.
        norm_eps: Of its norms.
        theta: Base of the frequencies.
        patch_px: Side of a patch.
        pooled: Side of the square of patches that becomes one token.
        num_positions: Rows and columns that have positions.
        clips: What enters and leaves matrices is cut to bounds of their own.
        standardizes: Tokens are shifted and scaled, by number.
    """

    hidden_size: int
    intermediate_size: int
    hidden_act: str
    num_layers: int
    heads: Heads
    norm_eps: float
    theta: float
    patch_px: int
    pooled: int
    num_positions: int
    clips: bool
    standardizes: bool

    @classmethod
    def read(cls, raw: Raw) -> Gemma4TowerConfig:
        """Return the tower of a vision config.

        Raises:
            UnsupportedConfigError: A setting that is not built.
        """
        full = {**DEFAULTS, **raw}
        rope = {**_ROPE, **(full.get("rope_parameters") or {})}
        num_heads, size = full["num_attention_heads"], full["head_dim"]
        require(full, [("num_key_value_heads", num_heads)])
        if rope["rope_type"] not in _ROPE_TYPES or size % 4:
            raise UnsupportedConfigError(
                f"vision_config.rope_parameters {rope!r} of heads of {size}: built are angles by column and row, two "
                "quarters of a head each"
            )
        return cls(
            full["hidden_size"],
            full["intermediate_size"],
            full["hidden_activation"],
            full["num_hidden_layers"],
            Heads(num_heads, num_heads, size, 1.0),
            full["rms_norm_eps"],
            float(rope["rope_theta"]),
            full["patch_size"],
            full["pooling_kernel_size"],
            full["position_embedding_size"],
            bool(full["use_clipped_linears"]),
            bool(full["standardize"]),
        )

    @property
    def usual_rows(self) -> int:
        """Patches of a usual image."""
        return _USUAL_TOKENS * self.pooled**2


class _Clipped(Module):
    """A matrix without biases, with bounds around it where the tower has them."""

    def __init__(
        self,
        config: Gemma4TowerConfig,
        in_size: int,
        out_size: int,
        order: npt.NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__()
        self.linear = Linear(in_size, out_size, rows=config.usual_rows, bias=False, order=order)
        self.clips = config.clips
        if self.clips:
            self.input_min, self.input_max, self.output_min, self.output_max = (Weight() for _ in range(4))

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        if not self.clips:
            return self.linear(op, x)
        inside = self.linear(op, op.Clip(x, self.input_min, self.input_max))
        return op.Clip(inside, self.output_min, self.output_max)


def _head_order(size: int) -> npt.NDArray[np.int64]:
    """Return [C] in which order a head's numbers stand for its halves to be the pairs.

    The checkpoint turns the first half of a head by column and the second by row, each as two quarters; here quarters
    by row come first, as `patch_angles` gives them.
    """
    quarters = np.arange(size).reshape(4, size // 4)
    return quarters[[2, 0, 3, 1]].reshape(-1)


class _Attention(Module):
    """Attention among patches, queries, keys and values normed by head."""

    def __init__(self, config: Gemma4TowerConfig, dialect: Dialect) -> None:
        super().__init__()
        heads, width = config.heads, config.heads.num * config.heads.size
        order = _head_order(heads.size)
        of_heads = (np.arange(heads.num)[:, None] * heads.size + order).reshape(-1)
        self.q_proj, self.k_proj = (_Clipped(config, config.hidden_size, width, of_heads) for _ in range(2))
        self.v_proj = _Clipped(config, config.hidden_size, width)
        self.o_proj = _Clipped(config, width, config.hidden_size)
        self.q_norm, self.k_norm = (
            RMSNorm(heads.size, config.norm_eps, dialect, weight=Weight(heads.size, order=order)) for _ in range(2)
        )
        self.v_norm = BareRMSNorm(heads.size, config.norm_eps, dialect)
        self.heads, self.clips = heads, config.clips
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        """Return [I, N, D] from [I, N, D]."""
        query = self._normed(op, self.q_norm, self.q_proj(op, x))
        key = self._normed(op, self.k_norm, self.k_proj(op, x))
        value = self._normed(op, self.v_norm, self.v_proj(op, x))
        query, key = (self.dialect.rotary(op, each, angles.cos, angles.sin, self.heads.num) for each in (query, key))
        return self.o_proj(op, self.dialect.attention(op, query, key, value, self.heads, None))

    def _normed(self, op: OpBuilder, norm: Module, x: ir.Value) -> ir.Value:
        heads = op.Reshape(x, [0, 0, self.heads.num, self.heads.size])
        return op.Reshape(norm(op, heads), [0, 0, self.heads.num * self.heads.size])


class _FeedForward(Module):
    def __init__(self, config: Gemma4TowerConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_proj, self.up_proj = (_Clipped(config, size, inner) for _ in range(2))
        self.down_proj = _Clipped(config, inner, size)
        self.hidden_act = config.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        gate = activation(op, self.hidden_act, self.gate_proj(op, x))
        return self.down_proj(op, op.Mul(gate, self.up_proj(op, x)))


class _Layer(Module):
    """Attention and feed-forward, each between two norms."""

    def __init__(self, config: Gemma4TowerConfig, dialect: Dialect) -> None:
        super().__init__()
        norms = [RMSNorm(config.hidden_size, config.norm_eps, dialect) for _ in range(4)]
        self.input_layernorm, self.post_attention_layernorm = norms[:2]
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norms[2:]
        self.self_attn = _Attention(config, dialect)
        self.mlp = _FeedForward(config)

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        attended = self.self_attn(op, self.input_layernorm(op, x), angles)
        x = op.Add(x, self.post_attention_layernorm(op, attended))
        fed = self.mlp(op, self.pre_feedforward_layernorm(op, x))
        return op.Add(x, self.post_feedforward_layernorm(op, fed))


class _Positions(Module):
    """What a patch's column and its row add; the checkpoint keeps both in one table [2, positions, D]."""

    def __init__(self, config: Gemma4TowerConfig) -> None:
        super().__init__("")
        sizes, source = (1, config.num_positions, config.hidden_size), "position_embedding_table"
        self.of_column, self.of_row = (
            Weight(*sizes, name=f"position_embedding_{at}", source=source, rows=(at, at + 1), label=Label("table"))
            for at in range(2)
        )

    def forward(self, op: OpBuilder, grid: Grid) -> ir.Value:
        """Return [1, N, D]."""
        return op.Add(op.Gather(self.of_column, grid.cols(op), axis=1), op.Gather(self.of_row, grid.rows(op), axis=1))


class _Embedder(Module):
    def __init__(self, config: Gemma4TowerConfig) -> None:
        super().__init__()
        self.input_proj = FlattenedPatches(config.hidden_size, config.patch_px, bias=False)
        self.positions = _Positions(config)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D], row by row, and the grid, from [I, 3, height, width] of 0 to 1."""
        x, grid = self.input_proj(op, op.Mul(op.Sub(pixel_values, 0.5), 2.0))
        return op.Add(x, self.positions(op, grid)), grid


class _Layers(Module):
    def __init__(self, config: Gemma4TowerConfig, dialect: Dialect) -> None:
        super().__init__()
        self.layers = ModuleList([_Layer(config, dialect) for _ in range(config.num_layers)])

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        for layer in self.layers:
            x = layer(op, x, angles)
        return x


class Gemma4Tower(Module):
    """Pixels to patches, layers over them, and the mean of each square.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: Gemma4TowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.patch_embedder = _Embedder(config)
        self.encoder = _Layers(config, dialect)
        self.config = config
        if config.standardizes:
            self.std_bias, self.std_scale = Weight(config.hidden_size), Weight(config.hidden_size)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, P, D] of P squares of patches, row by row, from [I, 3, height, width]."""
        x, grid = self.patch_embedder(op, pixel_values)
        x = self.encoder(op, x, patch_angles(op, x, grid, self.config.heads.size, self.config.theta))
        x = op.Mul(self._pooled(op, x, grid), math.sqrt(self.config.hidden_size))
        return op.Mul(op.Sub(x, self.std_bias), self.std_scale) if self.config.standardizes else x

    def _pooled(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        side, size = self.config.pooled, self.config.hidden_size
        down, across = op.Div(grid.height, side), op.Div(grid.width, side)
        squares = op.Reshape(x, op.Concat([-1], down, [side], across, [side, size], axis=0))
        means = op.ReduceMean(squares, [2, 4], keepdims=0)
        return op.Reshape(means, op.Concat([-1], op.Mul(down, across), [size], axis=0))
