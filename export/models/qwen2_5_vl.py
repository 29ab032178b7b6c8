"""Qwen2.5-VL (arXiv 2502.13923): Qwen2-VL with windows in its tower."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import sub_config
from export.connectors.patch_merger import PatchMerger
from export.image_processors.videos import VideoSettings
from export.models.qwen2_vl import TOWER, AnyShape
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.norms import RMSNorm
from export.towers.qwen2_5_vl import Qwen25VLTower, QwenTowerConfig

_EPS = 1e-6
_TOKENS_PER_SECOND = 4


class _Vision(Module):
    def __init__(self, config: QwenTowerConfig, dialect: Dialect) -> None:
        super().__init__()
        rows, norm = config.usual_rows // config.merged**2, RMSNorm(config.hidden_size, _EPS, dialect)
        self.tower = Qwen25VLTower(config, dialect, TOWER)
        self.merger = PatchMerger(
            norm, config.hidden_size, config.out_size, config.merged, rows=rows, name=f"{TOWER}.merger"
        )

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        patches, grid = self.tower(op, pixel_values)
        return self.merger(op, patches, grid)


class Qwen25VL(AnyShape):
    """`model_type` qwen2_5_vl."""

    text_type = "qwen2_5_vl_text"
    takes_groups = True
    video_settings = VideoSettings(least_px=128 * 28 * 28, most_px=768 * 28 * 28)

    @property
    def tower(self) -> QwenTowerConfig:
        """Sizes of the tower."""
        return QwenTowerConfig.read(sub_config(self.config, "vision_config"))

    @property
    def tokens_per_second(self) -> float:
        """How far a second of a video is on the axis of time."""
        return float(sub_config(self.config, "vision_config").get("tokens_per_second", _TOKENS_PER_SECOND))

    @property
    def given_width(self) -> int:
        """The decoder's width by the tower's config."""
        return self.tower.out_size

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and merger."""
        return _Vision(self.tower, dialect)
