"""Moondream 2's tower: SigLIP's layers over overlapping crops, put together again and averaged beside the whole image.

After `vision.py` and `image_crops.py` of the authors (vikhyat/moondream, moondream/torch).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig, VisionConfig, require
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.nn.patches import FlattenedPatches
from export.nn.vit import Encoder

DEFAULTS: Raw = {
    "enc_dim": 1152,
    "enc_patch_size": 14,
    "enc_n_layers": 27,
    "enc_ff_dim": 4304,
    "enc_n_heads": 16,
    "proj_out_dim": 2048,
    "crop_size": 378,
    "in_channels": 3,
    "max_crops": 12,
    "overlap_margin": 4,
    "proj_inner_dim": 8192,
}
_TO_THE_END = 2**31 - 1
_EPS = 1e-5
"""Of every norm: PyTorch's default, which the authors leave."""


@dataclass(frozen=True)
class MoondreamTowerConfig:
    """Sizes of the tower and of what follows it.

    Attributes:
        vision: Of the layers; its image is a crop.
        margin: Patches of half of what neighbouring crops share.
        most_crops: Of an image.
        inner_size: Between the two matrices of the connector.
        out_size: Behind them.
    """

    vision: VisionConfig
    margin: int
    most_crops: int
    inner_size: int
    out_size: int

    @classmethod
    def read(cls, raw: Raw) -> MoondreamTowerConfig:
        """Return the tower of the authors' `vision`.

        Raises:
            UnsupportedConfigError: Crops that are not whole patches, or of which margins leave nothing.
        """
        full = {**DEFAULTS, **raw}
        require(full, [("in_channels", 3)])
        side, patch, margin = full["crop_size"], full["enc_patch_size"], full["overlap_margin"]
        if side % patch or 2 * margin >= side // patch:
            raise UnsupportedConfigError(
                f"config.vision: crop_size {side} with enc_patch_size {patch} and overlap_margin {margin}: crops are "
                "whole patches, of which the margins leave some between them"
            )
        tower = TowerConfig(
            hidden_size=full["enc_dim"],
            intermediate_size=full["enc_ff_dim"],
            num_layers=full["enc_n_layers"],
            num_heads=full["enc_n_heads"],
            hidden_act="gelu_pytorch_tanh",
            layer_norm_eps=_EPS,
        )
        return cls(
            vision=VisionConfig(tower, side, patch, 3),
            margin=margin,
            most_crops=full["max_crops"],
            inner_size=full["proj_inner_dim"],
            out_size=full["proj_out_dim"],
        )

    @property
    def window(self) -> int:
        """Patches from one crop to the next."""
        return self.vision.grid - 2 * self.margin


class _Embeddings(Module):
    """Patches of a canvas, and positions of those of a crop."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__("")
        size = config.tower.hidden_size
        self.patch_emb = FlattenedPatches(size, config.patch_size_px, channels_first=True)
        self.pos_emb = Weight(1, config.grid**2, size)
        self.size = size

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, rows, columns, D] of the canvas, without positions."""
        flat, grid = self.patch_emb(op, pixel_values)
        return op.Reshape(flat, op.Concat([0], grid.height, grid.width, [self.size], axis=0))

    def placed(self, op: OpBuilder, crops: ir.Value) -> ir.Value:
        """Return crops [n, patches, D] with positions."""
        return op.Add(crops, self.pos_emb)


class MoondreamTower(Module):
    """A canvas as `bundle.image.StackedCrops` draws it to [I, patches of a crop, out]."""

    def __init__(self, config: MoondreamTowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        vision = config.vision
        self.embeddings = _Embeddings(vision)
        self.encoder = Encoder(vision.tower, dialect, rows=vision.grid**2)
        self.post_layernorm = LayerNorm(vision.tower.hidden_size, _EPS)
        self.proj_mlp = _Projector(config)
        self.config, self.side, self.size = config, vision.grid, vision.tower.hidden_size

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return the features of images [I, 3, height, width]."""
        side, images = self.side, op.Shape(pixel_values, start=0, end=1)
        canvas = self.embeddings(op, pixel_values)
        whole = op.Slice(canvas, [0, 0], [side, side], [1, 2])
        picture = op.Slice(canvas, [side], [_TO_THE_END], [1])
        down, across = (_Axis(op, picture, axis, self.config) for axis in (1, 2))
        crops = [op.Reshape(each, [-1, side**2, self.size]) for each in (whole, self._cut(op, picture, down, across))]
        placed = self.embeddings.placed(op, op.Concat(*crops, axis=0))
        states = self.post_layernorm(op, self.encoder(op, placed).states[-1])
        wholes, parts = op.Slice(states, [0], images, [0]), op.Slice(states, images, [_TO_THE_END], [0])
        pooled = self._pooled(op, self._stitched(op, parts, images, down, across), down, across)
        return self.proj_mlp(op, op.Concat(wholes, op.Reshape(pooled, [-1, side**2, self.size]), axis=2))

    def _cut(self, op: OpBuilder, picture: ir.Value, down: _Axis, across: _Axis) -> ir.Value:
        """Return [I, rows, columns, side, side, D] the crops of a picture [I, height, width, D]."""
        rows = op.Gather(picture, down.crops, axis=1)  # [I, rows, side, width, D]
        return op.Transpose(op.Gather(rows, across.crops, axis=3), perm=[0, 1, 3, 2, 4, 5])

    def _stitched(self, op: OpBuilder, crops: ir.Value, images: ir.Value, down: _Axis, across: _Axis) -> ir.Value:
        """Return [I, height, width, D]: of each crop what is not its neighbours', outer margins whole."""
        side, size = self.side, self.size
        apart = op.Reshape(crops, op.Concat(images, down.num, across.num, [side, side, size], axis=0))
        lines = op.Transpose(apart, perm=[0, 1, 3, 2, 4, 5])
        grid = op.Reshape(lines, op.Concat(images, op.Mul(down.num, side), op.Mul(across.num, side), [size], axis=0))
        return op.Gather(op.Gather(grid, down.kept, axis=1), across.kept, axis=2)

    def _pooled(self, op: OpBuilder, picture: ir.Value, down: _Axis, across: _Axis) -> ir.Value:
        """Return [I, side, side, D] the means over the cells of a picture (torch's adaptive_avg_pool2d)."""
        width = op.Shape(picture, start=2, end=3)
        lines = op.MatMul(down.shares, op.Reshape(picture, [0, 0, -1]))
        return op.MatMul(across.shares, op.Reshape(lines, op.Concat([0], [self.side], width, [self.size], axis=0)))


class _Axis:
    """What is known of a picture along one axis.

    Args:
        op: The builder.
        picture: [I, height, width, D] patches.
        axis: 1 or 2.
        config: Of the tower.

    Attributes:
        num: [1] crops.
        crops: [num, side] the patches of each crop.
        kept: [length] for each patch of the picture, its place among those of all crops, one crop behind another.
        shares: [side, length] the share that each patch has of the mean of a cell; cells may share patches.
    """

    def __init__(self, op: OpBuilder, picture: ir.Value, axis: int, config: MoondreamTowerConfig) -> None:
        side, window, margin = config.vision.grid, config.window, config.margin
        length = op.Shape(picture, start=axis, end=axis + 1)
        self.num = op.Div(op.Sub(length, [2 * margin]), [window])
        numbers = op.Range(0, op.Squeeze(self.num, [0]), 1)
        cells = op.Constant(value=ir.tensor(np.arange(side)))
        self.crops = op.Add(op.Unsqueeze(op.Mul(numbers, window), [1]), cells)
        places = op.Range(0, op.Squeeze(length, [0]), 1)
        # outer margins are the first crop's and the last one's
        inner = op.Div(op.Max(op.Sub(places, margin), 0), window)
        crop = op.Min(inner, op.Sub(self.num, [1]))
        self.kept = op.Add(places, op.Mul(crop, 2 * margin))
        starts = op.Unsqueeze(op.Div(op.Mul(cells, length), side), [1])
        ends = op.Unsqueeze(op.Div(op.Add(op.Mul(op.Add(cells, 1), length), side - 1), side), [1])
        inside = op.And(op.GreaterOrEqual(places, starts), op.Less(places, ends))
        counts = op.Cast(op.Sub(ends, starts), to=ir.DataType.FLOAT)
        self.shares = op.Div(op.Cast(inside, to=ir.DataType.FLOAT), counts)


class _Projector(Module):
    """Two matrices over the whole image's patches and the picture's, side by side."""

    def __init__(self, config: MoondreamTowerConfig) -> None:
        super().__init__()
        rows, size = config.vision.grid**2, config.vision.tower.hidden_size
        self.fc1 = Linear(2 * size, config.inner_size, rows=rows)
        self.fc2 = Linear(config.inner_size, config.out_size, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.fc2(op, op.Gelu(self.fc1(op, x), approximate="tanh"))
