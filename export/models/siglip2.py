"""SigLIP 2 for images of any shape (arXiv 2502.14786, section 2.4, NaFlex)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, MostPatches
from export.config import Raw, sub_config
from export.models.siglip import PoolingHead, SiglipTexts
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.siglip2_naflex import NaflexConfig, NaflexTower

_USUAL_PATCHES = 256
"""Of an image, by the processor's default."""


class _Vision(NaflexTower):
    """The tower, and what a learned query finds among its patches."""

    def __init__(self, config: NaflexConfig, dialect: Dialect) -> None:
        super().__init__(config, dialect, "vision_model", rows=_USUAL_PATCHES)
        self.head = PoolingHead(config.layers, dialect, rows=_USUAL_PATCHES)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        x, _ = super().forward(op, pixel_values)
        return self.head(op, x)


class Siglip2(SiglipTexts):
    """`model_type` siglip2; what is of fixed resolution calls itself siglip.

    A processor fills each image up with patches that nothing looks at. Here images of one size run together, and none
    is filled up.
    """

    image_processor = "Siglip2ImageProcessor"

    def __init__(self, config: Raw) -> None:
        self._vision = NaflexConfig.read(sub_config(config, "vision_config"))
        super().__init__(config, self._vision.layers.hidden_size)

    @property
    def image_size_px(self) -> int | None:
        """None: images keep their shape."""
        return None

    def check_images(self, spec: ImageSpec) -> None:
        """Check that the preprocessing makes whole patches.

        Raises:
            UnsupportedConfigError: Patches of another size, or images of one size.
        """
        geometry, side = spec.geometry, self._vision.patch_px
        if not isinstance(geometry, MostPatches) or geometry.patch_px != side:
            raise UnsupportedConfigError(
                f"the processor makes {geometry!r}, the vision tower takes images in their shape, of patches of {side} "
                "pixels a side"
            )

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and pooling head."""
        return _Vision(self._vision, dialect)
