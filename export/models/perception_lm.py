"""Perception LM (arXiv 2504.13180): a Perception Encoder, two matrices, means of squares of patches, and a Llama."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.llava import LlavaPrompt
from export.config import Raw, sub_config
from export.connectors.projector import Projector
from export.found_processor import FoundProcessor
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.squares import squares_shape, tokens_shape
from export.towers.perception_encoder import PerceptionConfig, PerceptionEncoder
from export.vision_language import VisionLanguage

_TO_THE_END = 2**31 - 1


class _Vision(Module):
    def __init__(self, config: PerceptionConfig, dialect: Dialect, out_size: int, factor: int) -> None:
        super().__init__()
        self.tower = PerceptionEncoder(config, dialect, "model.vision_tower.timm_model")
        self.projector = Projector(
            config.width, out_size, "gelu", rows=config.grid**2, bias=True, name="model.multi_modal_projector"
        )
        self.config, self.out_size, self.factor = config, out_size, factor

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        patches = self.tower(op, pixel_values)
        if self.config.has_class_token:
            patches = op.Slice(patches, [1], [_TO_THE_END], [1])
        projected = self.projector(op, patches)
        if self.factor == 1:
            return projected
        grid, factor, size = self.config.grid, self.factor, self.out_size
        squares = op.Reshape(projected, squares_shape(op, grid, factor, [factor, size]))
        return op.Reshape(op.ReduceMean(squares, [2, 4], keepdims=0), tokens_shape(op, grid, factor, [size]))


class PerceptionLM(VisionLanguage):
    """`model_type` perception_lm."""

    text_prefix = "model.language_model"
    image_processor: ClassVar[str] = "PerceptionLMImageProcessor"

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._tower = PerceptionConfig.read(sub_config(config, "vision_config"))
        self._factor = int(config.get("projector_pooling_ratio", 1))
        if self._tower.grid % self._factor:
            raise UnsupportedConfigError(
                f"projector_pooling_ratio {self._factor} does not divide the {self._tower.grid} patches of a tile's "
                "side"
            )
        if bool(config.get("vision_use_cls_token", True)) != self._tower.has_class_token:
            raise UnsupportedConfigError(
                f"vision_use_cls_token is {config.get('vision_use_cls_token', True)}, and the tower has "
                f"{'a' if self._tower.has_class_token else 'no'} class token; built is that it says what is so"
            )

    @property
    def image_size_px(self) -> int:
        """Side of a tile."""
        return self._tower.image_px

    @property
    def tokens_per_tile(self) -> int:
        """Patches of a tile, after the means."""
        return int((self._tower.grid // self._factor) ** 2)

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, projection and means."""
        return _Vision(self._tower, dialect, self.decoder.config.hidden_size, self._factor)

    def image_prompt(self, found: FoundProcessor) -> LlavaPrompt:
        """Return the image token repeated.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or the token is not in the vocabulary.
        """
        wanted = {"patch_size": self._tower.patch_px, "pooling_ratio": self._factor}
        for key, value in wanted.items():
            stated = found.settings.get(key)
            if stated is not None and int(stated) != value:
                raise UnsupportedConfigError(f"processor_config.json: {key} {stated}, but the model's is {value}")
        token = found.token("image_token", "<|image|>")
        return LlavaPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=self.tokens_per_tile,
        )
