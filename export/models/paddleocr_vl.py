"""PaddleOCR-VL (arXiv 2510.14528): documents read by a SigLIP tower over images of any shape, and ERNIE 4.5."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import sub_config
from export.connectors.patch_merger import merged_squares
from export.family import Family
from export.models.qwen2_vl import AnyShape
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.patches import Grid
from export.towers.paddleocr_vl import PaddleOCRTower, PaddleOCRTowerConfig

_EPS = 1e-5
_TOWER = "model.visual.vision_model"


class _Projector(Module):
    """A norm, then each square of patches as one vector of the decoder's width."""

    def __init__(self, config: PaddleOCRTowerConfig, out_size: int) -> None:
        super().__init__("model.projector")
        self.size, self.merged = config.layers.hidden_size, config.merged
        wide, rows = self.size * self.merged**2, config.usual_rows // self.merged**2
        self.pre_norm = LayerNorm(self.size, _EPS)
        self.linear_1 = Linear(wide, wide, rows=rows)
        self.linear_2 = Linear(wide, out_size, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        squares = merged_squares(op, self.pre_norm(op, x), grid, self.size, self.merged)
        return self.linear_2(op, op.Gelu(self.linear_1(op, squares)))


class _Vision(Module):
    def __init__(self, config: PaddleOCRTowerConfig, dialect: Dialect, out_size: int) -> None:
        super().__init__()
        self.tower = PaddleOCRTower(config, dialect, _TOWER)
        self.projector = _Projector(config, out_size)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        patches, grid = self.tower(op, pixel_values)
        return self.projector(op, patches, grid)


class PaddleOCRVL(AnyShape):
    """`model_type` paddleocr_vl."""

    text_type = "paddleocr_vl_text"
    image_processor = "PaddleOCRVLImageProcessor"
    image_token = "<|IMAGE_PLACEHOLDER|>"
    renames = (
        (r"^mlp_AR\.", "model.projector."),
        (r"^visual\.", "model.visual."),
        (r"^model\.(?!visual\.|projector\.|language_model\.)", "model.language_model."),
    )
    # transformers skips them as well: a table for packed images, and the pooling of the tower that it was made of
    unused: ClassVar[tuple[str, ...]] = (
        *Family.unused,
        r".*\.packing_position_embedding\.weight",
        r"model\.visual\.vision_model\.head\..*",
    )

    @property
    def tower(self) -> PaddleOCRTowerConfig:
        """Sizes of the tower."""
        return PaddleOCRTowerConfig.read(sub_config(self.config, "vision_config"))

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and projector."""
        return _Vision(self.tower, dialect, self.decoder.config.hidden_size)
