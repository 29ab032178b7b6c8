"""Qwen2.5-VL (arXiv 2502.13923): a tower with windows over images of any shape, and positions on three axes."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.image import Area, ImageSpec
from bundle.layouts.qwen2_vl import Qwen2VLPrompt
from export.config import Raw, sub_config
from export.connectors.patch_merger import PatchMerger
from export.family import VisionLanguage
from export.found_processor import FoundProcessor
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.norms import RMSNorm
from export.towers.qwen2_5_vl import Qwen25VLTower, QwenTowerConfig

_EPS = 1e-6
_TOWER = "model.visual"


class _Vision(Module):
    def __init__(self, config: QwenTowerConfig, dialect: Dialect) -> None:
        super().__init__()
        rows = config.usual_rows // config.merged**2
        norm = RMSNorm(config.hidden_size, _EPS, dialect)
        self.tower = Qwen25VLTower(config, dialect, _TOWER)
        self.merger = PatchMerger(
            norm, "ln_q", config.hidden_size, config.out_size, config.merged, rows=rows, name=f"{_TOWER}.merger"
        )

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        patches, grid = self.tower(op, pixel_values)
        return self.merger(op, patches, grid)


class Qwen25VL(VisionLanguage):
    """`model_type` qwen2_5_vl."""

    text_prefix = "model.language_model"
    text_type = "qwen2_5_vl_text"
    image_processor = "Qwen2VLImageProcessor"
    renames = (
        (r"^visual\.", "model.visual."),
        (r"^model\.(?!visual\.|language_model\.)", "model.language_model."),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._vision = QwenTowerConfig.read(sub_config(config, "vision_config"))
        if self._vision.out_size != self.decoder.config.hidden_size:
            raise UnsupportedConfigError(
                f"vision_config.out_hidden_size {self._vision.out_size} is not the decoder's hidden_size "
                f"{self.decoder.config.hidden_size}"
            )

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config; older ones keep it among the rest."""
        return {**(self.config.get("text_config") or self.config), "model_type": self.text_type}

    @property
    def image_size_px(self) -> None:
        """None: an image keeps its shape."""
        return

    @property
    def tokens_per_tile(self) -> None:
        """None: as many as squares of patches."""
        return

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images come in whole squares of patches.

        Raises:
            UnsupportedConfigError: They do not.
        """
        unit = self._vision.patch_px * self._vision.merged
        if not isinstance(spec.geometry, Area) or spec.geometry.step_px != unit:
            raise UnsupportedConfigError(
                f"the processor makes images by {spec.geometry!r}, the vision tower takes squares of {unit} pixels: "
                "patch_size and merge_size of the processor must be patch_size and spatial_merge_size of vision_config"
            )

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and merger."""
        return _Vision(self._vision, dialect)

    def image_prompt(self, found: FoundProcessor) -> Qwen2VLPrompt:
        """Return one image token for each square of patches.

        Raises:
            UnsupportedConfigError: The token is not in the vocabulary, or has another id than the config says.
        """
        token, unit = found.token("image_token", "<|image_pad|>"), self._vision.patch_px * self._vision.merged
        height, width = found.spec.tile_size_px
        return Qwen2VLPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=(height // unit) * (width // unit),
            step_px=unit,
        )
