"""Qwen2.5-VL's vision tower (arXiv 2502.13923, section 2.1.1): images of any shape, most layers within windows."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw
from export.nn.dialect import Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList
from export.nn.norms import RMSNorm
from export.nn.patches import Grid, PackedAttention, VideoPatches, patch_angles
from export.nn.rotary import Angles
from export.nn.vit import MASKED
from export.towers.patch_layers import PatchBlock, PatchTowerConfig, patch_tower_sizes

DEFAULTS: Raw = {
    "depth": 32,
    "hidden_size": 3584,
    "hidden_act": "silu",
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": (7, 15, 23, 31),
}
_EPS = 1e-6


@dataclass(frozen=True)
class QwenTowerConfig(PatchTowerConfig):
    """Sizes of the tower.

    Attributes:
        window: Side of a window, in patches.
        full_layers: Layers that look at the whole image.
        mlp_bias: Gate, and the matrices around it, have biases.
    """

    window: int
    full_layers: tuple[int, ...]
    mlp_bias: bool = True

    @classmethod
    def read(cls, raw: Raw) -> QwenTowerConfig:
        """Return the tower of a vision config.

        Raises:
            UnsupportedConfigError: A size that is not built.
        """
        full = {**DEFAULTS, **raw}
        unit = full["patch_size"] * full["spatial_merge_size"]
        if full["window_size"] < unit:
            raise UnsupportedConfigError(
                f"vision_config.window_size {full['window_size']} is less than a token's side of {unit} pixels"
            )
        return cls(
            **patch_tower_sizes(full),
            window=full["window_size"] // unit * full["spatial_merge_size"],
            full_layers=tuple(full["fullatt_block_indexes"]),
        )


@dataclass(frozen=True)
class _Windows:
    """Where the patches of an image stand among its windows, which are filled up with copies of its last ones.

    Attributes:
        patch: [S] the patch of each place, window by window.
        place: [N] the place of each patch.
        bias: [windows, 1, w*w, w*w] added to scores within a window: copies are not looked at.
    """

    patch: ir.Value
    place: ir.Value
    bias: ir.Value


def _windows(op: OpBuilder, grid: Grid, window: int) -> _Windows:
    """Return the windows of `window` x `window` patches that cover a grid."""
    rows, is_row, num_down = _filled(op, grid.height, window)
    cols, is_col, num_across = _filled(op, grid.width, window)
    patch = op.Add(op.Mul(op.Unsqueeze(rows, [1]), grid.width), op.Unsqueeze(cols, [0]))
    is_patch = op.And(op.Unsqueeze(is_row, [1]), op.Unsqueeze(is_col, [0]))
    shape = op.Concat(num_down, [window], num_across, [window], axis=0)
    patches = op.Reshape(_by_window(op, patch, shape), [-1])
    seen = op.Reshape(_by_window(op, is_patch, shape), [-1, 1, 1, window * window])
    bias = op.Where(seen, 0.0, MASKED)
    count = op.Shape(bias, start=0, end=1)
    bias = op.Expand(bias, op.Concat(count, [1, window * window, window * window], axis=0))
    return _Windows(patches, _places(op, grid, num_across, window), bias)


def _filled(op: OpBuilder, size: ir.Value, window: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return the rows that fill windows along one side, which of them are no copies, and how many windows [1]."""
    count = op.Div(op.Add(size, window - 1), window)
    all_rows = op.Range(0, op.Squeeze(op.Mul(count, window), [0]), 1)
    return op.Min(all_rows, op.Sub(size, 1)), op.Less(all_rows, size), count


def _by_window(op: OpBuilder, x: ir.Value, shape: ir.Value) -> ir.Value:
    return op.Transpose(op.Reshape(x, shape), perm=[0, 2, 1, 3])


def _places(op: OpBuilder, grid: Grid, num_across: ir.Value, window: int) -> ir.Value:
    rows, cols = grid.rows(op), grid.cols(op)
    of_window = op.Add(op.Mul(op.Div(rows, window), num_across), op.Div(cols, window))
    inside = op.Add(op.Mul(op.Mod(rows, window), window), op.Mod(cols, window))
    return op.Add(op.Mul(of_window, window * window), inside)


def _block(config: QwenTowerConfig, dialect: Dialect) -> PatchBlock:
    norms = RMSNorm(config.hidden_size, _EPS, dialect), RMSNorm(config.hidden_size, _EPS, dialect)
    attention = PackedAttention(config.hidden_size, config.heads, dialect, rows=config.usual_rows)
    return PatchBlock(norms, attention, GatedMLP(config, rows=config.usual_rows))


class Qwen25VLTower(Module):
    """Pixels to patches, and layers over them.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: QwenTowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.patch_embed = VideoPatches(config.hidden_size, config.patch_px, config.num_frames)
        self.blocks = ModuleList([_block(config, dialect) for _ in range(config.num_layers)])
        self.config = config

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D] of N patches, row by row, and their grid, from [I, 3, height, width]."""
        x, grid = self.patch_embed(op, pixel_values)
        windows = _windows(op, grid, self.config.window)
        by_row = patch_angles(op, x, grid, self.config.heads.size)
        by_window = Angles(*(op.Gather(each, windows.patch, axis=1) for each in (by_row.cos, by_row.sin)))
        bias = self._bias_of_images(op, windows, x)
        is_by_window = False
        for number, block in enumerate(self.blocks):
            is_full = number in self.config.full_layers
            if is_full == is_by_window:
                x = op.Gather(x, windows.place if is_full else windows.patch, axis=1)
                is_by_window = not is_full
            x = block(op, x, by_row) if is_full else block(op, x, by_window, self.config.window**2, bias)
        return (op.Gather(x, windows.place, axis=1) if is_by_window else x), grid

    def _bias_of_images(self, op: OpBuilder, windows: _Windows, x: ir.Value) -> ir.Value:
        """Return the bias once for every image [I * windows, 1, w*w, w*w]."""
        size = self.config.window**2
        per_image = op.Expand(
            op.Unsqueeze(windows.bias, [0]), op.Concat(op.Shape(x, start=0, end=1), [1, 1, 1, 1], axis=0)
        )
        return op.Reshape(per_image, [-1, 1, size, size])
