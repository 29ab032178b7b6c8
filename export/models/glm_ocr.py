"""GLM-OCR (zai-org/GLM-OCR, as transformers has it): images of any shape, squares of patches convolved into tokens."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import sub_config
from export.models.qwen2_vl import TOWER, AnyShape
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.mlp import GatedMLP
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.nn.patches import Grid
from export.towers.glm_ocr import GlmOcrTower, GlmOcrTowerConfig

_EPS = 1e-5
_WIDENING = 3
"""Width inside the merger's feed-forward over its own: the channels of an image, in transformers' model."""


class _Downsample(Module):
    """Each square of patches to one token, by a convolution."""

    def __init__(self, config: GlmOcrTowerConfig) -> None:
        super().__init__(f"{TOWER}.downsample")
        self.weight = Weight(config.out_size, config.hidden_size, config.merged, config.merged)
        self.bias = Weight(config.out_size)
        self.side = config.merged

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        shape = op.Concat(op.Shape(x, start=0, end=1), op.Shape(x, start=2, end=3), grid.height, grid.width, axis=0)
        places = op.Reshape(op.Transpose(x, perm=[0, 2, 1]), shape)
        side = [self.side, self.side]
        squares = op.Conv(places, self.weight, self.bias, kernel_shape=side, strides=side)
        return op.Transpose(op.Reshape(squares, [0, 0, -1]), perm=[0, 2, 1])


@dataclass(frozen=True)
class _Inside:
    """Sizes of the merger's feed-forward."""

    hidden_size: int
    intermediate_size: int
    hidden_act: str
    mlp_bias: bool = False


class _Merger(Module):
    def __init__(self, config: GlmOcrTowerConfig, rows: int) -> None:
        super().__init__(f"{TOWER}.merger")
        size = config.out_size
        self.proj = Linear(size, size, rows=rows, bias=False)
        self.post_projection_norm = LayerNorm(size, _EPS)
        self.gated = GatedMLP(_Inside(size, _WIDENING * size, config.hidden_act), rows=rows, name="")

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.gated(op, op.Gelu(self.post_projection_norm(op, self.proj(op, x))))


class _Vision(Module):
    def __init__(self, config: GlmOcrTowerConfig, dialect: Dialect) -> None:
        super().__init__()
        self.tower = GlmOcrTower(config, dialect, TOWER)
        self.downsample = _Downsample(config)
        self.merger = _Merger(config, config.usual_rows // config.merged**2)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        patches, grid = self.tower(op, pixel_values)
        return self.merger(op, self.downsample(op, patches, grid))


class GlmOcr(AnyShape):
    """`model_type` glm_ocr."""

    text_type = "glm_ocr_text"
    image_processor = "Glm46VImageProcessor"
    image_token = "<|image|>"
    renames = ()

    @property
    def tower(self) -> GlmOcrTowerConfig:
        """Sizes of the tower."""
        return GlmOcrTowerConfig.read(sub_config(self.config, "vision_config"))

    @property
    def given_width(self) -> int:
        """The decoder's width by the tower's config."""
        return self.tower.out_size

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, convolution and merger."""
        return _Vision(self.tower, dialect)

    def skipped(self) -> tuple[str, ...]:
        """Return `unused`, and the layer behind the decoder's last: it guesses a second token ahead, for drafts."""
        behind = self.decoder.config.num_layers
        return (*super().skipped(), rf"model\.language_model\.layers\.{behind}\..*")
