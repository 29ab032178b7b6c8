"""MiniCPM-V 4.6's vision tower: SigLIP's layers, with squares of patches made one between two of them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, VisionConfig, require
from export.connectors.patch_merger import merged_squares
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.patches import Grid, StillPatches, usual_patches
from export.nn.vit import EncoderAttention, EncoderLayer
from graphs.labels import Label

DEFAULTS: Raw = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "window_kernel_size": (2, 2),
}
_SIDE = 2
"""Of the squares that become one."""


@dataclass(frozen=True)
class MiniCPMVTowerConfig:
    """Sizes of the tower.

    Attributes:
        vision: Its layers and its table of positions.
        merged_behind: The layer behind which squares become one; None: they stay patches.
    """

    vision: VisionConfig
    merged_behind: int | None

    @classmethod
    def read(cls, raw: Raw, merged_behind: int, *, merges: bool) -> MiniCPMVTowerConfig:
        """Return the tower of a vision config.

        Args:
            raw: The config.
            merged_behind: Layer behind which squares become one.
            merges: Whether they do.

        Raises:
            UnsupportedConfigError: Other squares, or no such layer.
        """
        full = {**DEFAULTS, **raw}
        require({"window_kernel_size": list(full["window_kernel_size"])}, [("window_kernel_size", [_SIDE, _SIDE])])
        vision = VisionConfig.read(raw, DEFAULTS)
        if merges and not 0 <= merged_behind < vision.tower.num_layers:
            raise UnsupportedConfigError(
                f"insert_layer_id {merged_behind}: the tower has the layers 0 to {vision.tower.num_layers - 1}, behind "
                "one of which squares of patches become one"
            )
        return cls(vision, merged_behind if merges else None)

    @property
    def patch_px(self) -> int:
        """Side of a patch."""
        return self.vision.patch_size_px

    def rows(self, number: int) -> int:
        """Return how many vectors of a usual image a layer has."""
        is_merged = self.merged_behind is not None and number > self.merged_behind
        return usual_patches(self.patch_px) // (_SIDE**2 if is_merged else 1)


class _NearestPositions(Module):
    """Learned positions of a square, of which a patch takes the one at its share of height and width.

    Args:
        side: Of the square.
        size: D.
    """

    def __init__(self, side: int, size: int) -> None:
        super().__init__()
        self.weight = Weight(side * side, size, label=Label("constant table"))
        self.side = side

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        """Return x [I, N, D], row by row, plus the position of each patch; whole numbers, so no share is rounded."""
        down = op.Div(op.Mul(grid.rows(op), self.side), grid.height)
        across = op.Div(op.Mul(grid.cols(op), self.side), grid.width)
        return op.Add(x, op.Gather(self.weight, op.Add(op.Mul(down, self.side), across), axis=0))


class _Embeddings(Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = StillPatches(config.tower.hidden_size, config.patch_size_px)
        self.position_embedding = _NearestPositions(config.grid, config.tower.hidden_size)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        x, grid = self.patch_embedding(op, pixel_values)
        return self.position_embedding(op, x, grid), grid


class _SquareMerger(Module):
    """Attention within each square of patches, then the square as one vector beside the mean of its patches."""

    def __init__(self, config: VisionConfig, dialect: Dialect) -> None:
        super().__init__()
        tower, patches = config.tower, usual_patches(config.patch_size_px)
        wide, inner = tower.hidden_size * _SIDE**2, tower.intermediate_size * _SIDE**2
        self.layer_norm1 = LayerNorm(tower.hidden_size, tower.layer_norm_eps)
        self.self_attn = EncoderAttention(tower, dialect, rows=patches)
        self.pre_norm = LayerNorm(wide, tower.layer_norm_eps)
        self.linear_1 = Linear(wide, inner, rows=patches // _SIDE**2)
        self.linear_2 = Linear(inner, tower.hidden_size, rows=patches // _SIDE**2)
        self.size = tower.hidden_size

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> tuple[ir.Value, Grid]:
        """Return [I, N / 4, D] of [I, N, D], row by row, and their grid."""
        images, count = op.Shape(x, start=0, end=1), _SIDE**2
        squares = op.Reshape(merged_squares(op, x, grid, self.size, _SIDE), [-1, count, self.size])
        attended, _ = self.self_attn(op, self.layer_norm1(op, squares), None)
        squares = op.Add(squares, attended)
        flat = op.Reshape(squares, op.Concat(images, [-1, count * self.size], axis=0))
        mean = op.Reshape(op.ReduceMean(squares, [1], keepdims=0), op.Concat(images, [-1, self.size], axis=0))
        inner = op.Gelu(self.linear_1(op, self.pre_norm(op, flat)), approximate="tanh")
        halved = Grid(op.Div(grid.height, _SIDE), op.Div(grid.width, _SIDE))
        return op.Add(self.linear_2(op, inner), mean), halved


class MiniCPMVTower(Module):
    """Pixels to vectors of squares of patches, or of patches.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: MiniCPMVTowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        vision = config.vision
        self.embeddings = _Embeddings(vision)
        self.layers = ModuleList(
            [EncoderLayer(vision.tower, dialect, rows=config.rows(number)) for number in range(vision.tower.num_layers)]
        )
        self.vit_merger = None if config.merged_behind is None else _SquareMerger(vision, dialect)
        self.post_layernorm = LayerNorm(vision.tower.hidden_size, vision.tower.layer_norm_eps)
        self.config = config

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D], row by row, and their grid, from [I, 3, height, width]."""
        x, grid = self.embeddings(op, pixel_values)
        for number, layer in enumerate(self.layers):
            x, _ = layer(op, x, None)
            if self.vit_merger is not None and number == self.config.merged_behind:
                x, grid = self.vit_merger(op, x, grid)
        return self.post_layernorm(op, x), grid
