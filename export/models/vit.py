"""ViT (arXiv 2010.11929) by itself, DINO (arXiv 2104.14294) among its checkpoints: vectors of images."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, VisionConfig
from export.image_embedder import ImageEmbedder
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.vit import VISION_DEFAULTS, VitTower


class _ClassToken(VitTower):
    """The tower, and its class token after the last norm."""

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, D] from [I, 3, height, width]."""
        return op.Gather(super().forward(op, pixel_values), 0, axis=1)


class Vit(ImageEmbedder):
    """`model_type` vit; the pooler is left out, for most checkpoints have none, or one that was never trained."""

    image_processor = "ViTImageProcessor"
    unused = (*ImageEmbedder.unused, r"(?:vit\.)?pooler\.dense\..*")

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._vision = VisionConfig.read(config, VISION_DEFAULTS)
        self._qkv_bias = bool(config.get("qkv_bias", True))

    @property
    def image_size_px(self) -> int:
        """Side of the input: positions are learned for one size."""
        return self._vision.image_size_px

    @property
    def embedding_size(self) -> int:
        """The tower's width."""
        return self._vision.tower.hidden_size

    def tower(self, dialect: Dialect, name: str) -> Module:
        """Return the tower down to its class token."""
        return _ClassToken(self._vision, dialect, name, qkv_bias=self._qkv_bias)
