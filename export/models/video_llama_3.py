"""VideoLLaMA 3 (arXiv 2501.13106): SigLIP's layers with angles over images of any shape, two matrices, a Qwen2."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.layouts.table import KnownImagePrompt
from export.config import Raw, TowerConfig, require, sub_config
from export.connectors.projector import Projector
from export.found_processor import FoundProcessor
from export.models.qwen2_vl import AnyShape
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.patches import Grid
from export.towers.paddleocr_vl import PaddleOCRTower, PaddleOCRTowerConfig
from export.towers.siglip import VISION_DEFAULTS
from export.vision_language import VisionLanguage

_TOWER, _PROJECTOR = "model.vision_model", "model.projector"
_THETA = 10_000.0


class _Fewer(Module):
    """Patches scaled down as a picture: between each two of a line and of a column, where `factor` is 2."""

    def __init__(self, factor: int, size: int) -> None:
        super().__init__("")
        self.factor, self.size = factor, size

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        """Return [I, N / factor^2, D] from [I, N, D], row by row."""
        images, size = op.Shape(x, start=0, end=1), [self.size]
        placed = op.Reshape(op.Transpose(x, perm=[0, 2, 1]), op.Concat(images, size, grid.height, grid.width, axis=0))
        sides = op.Div(grid.height, [self.factor]), op.Div(grid.width, [self.factor])
        sizes = op.Concat(images, size, *sides, axis=0)
        scaled = op.Resize(placed, None, None, sizes, mode="linear", coordinate_transformation_mode="half_pixel")
        return op.Transpose(op.Reshape(scaled, [0, 0, -1]), perm=[0, 2, 1])


class _Vision(Module):
    def __init__(self, config: PaddleOCRTowerConfig, dialect: Dialect, out_size: int) -> None:
        super().__init__()
        width, rows = config.layers.hidden_size, config.usual_rows // config.merged**2
        self.tower = PaddleOCRTower(config, dialect, _TOWER)
        self.fewer = _Fewer(config.merged, width) if config.merged > 1 else None
        self.projector = Projector(width, out_size, "gelu", rows=rows, bias=True, name=_PROJECTOR)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        patches, grid = self.tower(op, pixel_values)
        return self.projector(op, patches if self.fewer is None else self.fewer(op, patches, grid))


class VideoLlama3(AnyShape):
    """`model_type` video_llama_3, in transformers' layout.

    An image's patches are scaled down by `merge_size` of its processor, 1 in published ones. Frames of a video are
    images: its processor scales them by another number and leaves out what did not change, which is not built.
    """

    text_type = "qwen2"
    image_processor = "VideoLlama3ImageProcessor"
    reads_image_settings = True
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^model\.projector\.readout\.0\.", f"{_PROJECTOR}.linear_1."),
        (r"^model\.projector\.readout\.2\.", f"{_PROJECTOR}.linear_2."),
    )
    unused = VisionLanguage.unused

    def __init__(self, config: Raw) -> None:
        require(sub_config(config, "text_config"), [("model_type", "qwen2")])
        super().__init__(config)

    @property
    def tower(self) -> PaddleOCRTowerConfig:
        """Sizes of the tower."""
        vision = sub_config(self.config, "vision_config")
        rope = dict(vision.get("rope_parameters") or {})
        require(vision, [("num_channels", 3)])
        require(rope, [("rope_type", "axial")])
        return PaddleOCRTowerConfig(
            layers=TowerConfig.read(vision, VISION_DEFAULTS),
            patch_px=int(vision.get("patch_size", VISION_DEFAULTS["patch_size"])),
            merged=int(self.stated_images.get("merge_size") or 1),
            table_side=None,
            theta=float(rope.get("rope_theta", _THETA)),
        )

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and projector."""
        return _Vision(self.tower, dialect, self.decoder.config.hidden_size)

    def image_prompt(self, found: FoundProcessor) -> KnownImagePrompt:
        """Return one image token for each patch that is left, all on one axis.

        Raises:
            UnsupportedConfigError: The token is not in the vocabulary, or has another id than the config says.
        """
        return super().image_prompt(found).model_copy(update={"is_flat": True})
