"""Molmo 2's tower: a SigLIP's layers without a last norm, over crops of a canvas, put together again as one grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, VisionConfig, require
from export.nn.dialect import Dialect
from export.nn.module import Module, Weight
from export.nn.patches import FlattenedPatches, Grid
from export.nn.vit import Encoder

DEFAULTS: Raw = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 25,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 378,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_OLDER = (
    ("image_size", "image_default_input_size"),
    ("patch_size", "image_patch_size"),
    ("num_position_embeddings", "image_num_pos"),
)
"""Keys, and their names in the published files."""


def read_tower(raw: Raw) -> VisionConfig:
    """Return the tower of a vision config, by either of its names of keys.

    Raises:
        UnsupportedConfigError: Another number of positions than of patches, or heads that are not built.
    """
    given = {**raw, **{name: raw[old] for name, old in _OLDER if raw.get(old) is not None}}
    config = VisionConfig.read({key: each for key, each in given.items() if each is not None}, DEFAULTS)
    if (positions := given.get("num_position_embeddings")) not in (None, config.grid**2):
        raise UnsupportedConfigError(
            f"vision_config.num_position_embeddings {positions}: a crop of {config.image_size_px} pixels has "
            f"{config.grid**2} patches, and each its own position"
        )
    require(given, plain_heads(config.tower.num_heads, config.tower.hidden_size))
    return config


def plain_heads(num: int, size: int) -> tuple[tuple[str, object], ...]:
    """Return what a config may say of heads that share nothing and are together as wide as what they look at."""
    return ("num_key_value_heads", num), ("head_dim", size // num), ("attention_bias", True)


@dataclass(frozen=True)
class Overlap:
    """How crops of a canvas overlap, in patches; `OverlappingCrops` has it in pixels.

    Attributes:
        crop: Edge of a crop.
        before: Margin at its top and left, which is not looked at but at the edge of the canvas.
        behind: At its bottom and right.
        patch_px: Edge of a patch.
    """

    crop: int
    before: int
    behind: int
    patch_px: int

    @property
    def window(self) -> int:
        """From one crop to the next."""
        return self.crop - self.before - self.behind


class Molmo2Tower(Module):
    """A canvas of crops to patches, each seen within its crop.

    Args:
        config: The tower.
        overlap: Of crops.
        layers: Numbers of the layers that are looked at, side by side.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(
        self, config: VisionConfig, overlap: Overlap, layers: Sequence[int], dialect: Dialect, name: str
    ) -> None:
        super().__init__(name)
        size, rows = config.tower.hidden_size, config.grid**2
        self.patch_embedding = FlattenedPatches(size, config.patch_size_px)
        self.positional_embedding = Weight(rows, size)
        self.encoder = Encoder(config.tower, dialect, rows=rows, num_layers=max(layers) + 1)
        self.overlap, self.chosen = overlap, tuple(layers)

    def forward(self, op: OpBuilder, canvas: ir.Value) -> tuple[ir.Value, Grid]:
        """Return patches [I, height, width, layers * D] of canvases [I, 3, height_px, width_px], and their grid."""
        cut = [_Crops(op, op.Shape(canvas, start=axis, end=axis + 1), self.overlap) for axis in (2, 3)]
        patches, _ = self.patch_embedding(op, _cut(op, canvas, cut, self.overlap))
        passed = self.encoder(op, op.Add(patches, self.positional_embedding))
        seen = op.Concat(*(passed.states[layer + 1] for layer in self.chosen), axis=-1)
        down, across = cut
        side = self.overlap.crop
        by_crop = op.Reshape(seen, op.Concat([-1], down.num, across.num, [side, side, self.width], axis=0))
        shape = op.Concat([-1], op.Mul(down.num, side), op.Mul(across.num, side), [self.width], axis=0)
        apart = op.Reshape(op.Transpose(by_crop, perm=[0, 1, 3, 2, 4, 5]), shape)
        rows = op.Gather(apart, down.owners(op), axis=1)
        return op.Gather(rows, across.owners(op), axis=2), Grid(down.patches, across.patches)

    @property
    def width(self) -> int:
        """Of a patch, all layers side by side."""
        return int(self.positional_embedding.shape[1]) * len(self.chosen)


class _Crops:
    """How one axis of a canvas is cut.

    Args:
        op: The builder.
        length_px: [1] int64, of the canvas.
        overlap: Of crops.

    Attributes:
        num: [1] int64, crops along the axis.
        patches: [1] int64, patches along it.
    """

    def __init__(self, op: OpBuilder, length_px: ir.Value, overlap: Overlap) -> None:
        self.patches = op.Div(length_px, overlap.patch_px)
        self.num = op.Div(op.Sub(self.patches, overlap.crop - overlap.window), overlap.window)
        self._overlap = overlap

    def pixels(self, op: OpBuilder) -> ir.Value:
        """Return [crops * crop_px] which lines of pixels each crop has, one crop behind another."""
        overlap = self._overlap
        starts = op.Mul(op.Range(0, op.Squeeze(self.num, [0]), 1), overlap.window * overlap.patch_px)
        return op.Reshape(op.Add(op.Unsqueeze(starts, [1]), op.Range(0, overlap.crop * overlap.patch_px, 1)), [-1])

    def owners(self, op: OpBuilder) -> ir.Value:
        """Return [patches] where each line of patches lies in crops that stand one behind another."""
        overlap, lines = self._overlap, op.Range(0, op.Squeeze(self.patches, [0]), 1)
        inner = op.Max(op.Sub(lines, overlap.before), 0)
        crops = op.Min(op.Div(inner, overlap.window), op.Squeeze(op.Sub(self.num, 1), [0]))
        return op.Add(lines, op.Mul(crops, overlap.crop - overlap.window))


def _cut(op: OpBuilder, canvas: ir.Value, cut: Sequence[_Crops], overlap: Overlap) -> ir.Value:
    """Return [I * crops, 3, crop_px, crop_px], row by row of a canvas."""
    down, across = cut
    lines = op.Gather(op.Gather(canvas, down.pixels(op), axis=2), across.pixels(op), axis=3)
    side = overlap.crop * overlap.patch_px
    squares = op.Reshape(lines, op.Concat([-1, 3], down.num, [side], across.num, [side], axis=0))
    return op.Reshape(op.Transpose(squares, perm=[0, 2, 4, 1, 3, 5]), [-1, 3, side, side])
