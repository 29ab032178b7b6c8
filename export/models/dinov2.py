"""DINOv2 (arXiv 2304.07193) by itself, RAD-DINO (arXiv 2401.10815) among its checkpoints: vectors of images."""

from __future__ import annotations

from export.config import Raw
from export.image_embedder import ImageEmbedder
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.dinov2 import Dinov2Tower, read_dinov2


class Dinov2(ImageEmbedder):
    """`model_type` dinov2 and dinov2_with_registers; the vector is transformers' `pooler_output`."""

    image_processor = "BitImageProcessor"

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._vision = read_dinov2(config)

    @property
    def image_size_px(self) -> None:
        """None: positions follow an image's shape."""
        return

    @property
    def embedding_size(self) -> int:
        """The tower's width."""
        return self._vision.tower.hidden_size

    def tower(self, dialect: Dialect, name: str) -> Module:
        """Return the tower down to its class token."""
        return Dinov2Tower(self._vision, dialect, name)
