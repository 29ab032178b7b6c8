"""DINOv3's ViT (arXiv 2508.10104) by itself: vectors of images."""

from __future__ import annotations

from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.image import Fixed, ImageSpec
from export.config import Raw
from export.image_embedder import ImageEmbedder
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.dinov3 import Dinov3Config, Dinov3Tower


class Dinov3Vit(ImageEmbedder):
    """`model_type` dinov3_vit; the vector is transformers' `pooler_output`, the class token after the last norm."""

    image_processor = "DINOv3ViTImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(?:model\.)?layer\.", "tower.layer."),
        (r"^(embeddings|norm)\.", r"tower.\1."),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._sizes = Dinov3Config.read(config)

    def skipped(self) -> tuple[str, ...]:
        """Return what every tower's outputs skip, and the empty tensor of no registers."""
        empty = () if self._sizes.num_registers else (r"tower\.embeddings\.register_tokens",)
        return (*super().skipped(), *empty)

    @property
    def image_size_px(self) -> None:
        """None: patches turn by where they stand in an image of any shape."""
        return

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images come in whole patches.

        Raises:
            UnsupportedConfigError: They do not.
        """
        geometry, side = spec.geometry, self._sizes.patch_px
        if isinstance(geometry, Fixed) and (geometry.height_px % side or geometry.width_px % side):
            raise UnsupportedConfigError(
                f"the processor makes images of {geometry.height_px} x {geometry.width_px} pixels, and the tower takes "
                f"whole patches of {side}"
            )

    @property
    def embedding_size(self) -> int:
        """The tower's width."""
        return self._sizes.hidden_size

    def tower(self, dialect: Dialect, name: str) -> Module:
        """Return the tower down to its class token."""
        return Dinov3Tower(self._sizes, dialect, name)
