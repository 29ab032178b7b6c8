"""FastVLM (arXiv 2412.13303): a FastViTHD tower, a two-layer connector, and a Qwen2."""

from __future__ import annotations

from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.layouts.llava import LlavaPrompt
from export.config import Raw, require, sub_config
from export.connectors.projector import Projector
from export.family import Family
from export.found_processor import FoundProcessor
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.fastvit import FastViTTower
from export.towers.fastvit_config import FastViTConfig
from export.vision_language import VisionLanguage

_DEFAULT_TOKENS = 576
_PROJECTOR = "model.multi_modal_projector"


class FastVLM(VisionLanguage):
    """`model_type` fast_vlm."""

    text_prefix = "model.language_model"
    default_text = "qwen2"
    image_processor = "CLIPImageProcessor"
    # batches of training are not counted on
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r"model\.vision_tower\.timm_model\..*\.num_batches_tracked")

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        require(config, [("vision_feature_select_strategy", "full"), ("vision_feature_layer", -1)])
        self._num_tokens = int(config.get("image_seq_length", _DEFAULT_TOKENS))
        self._tower = FastViTConfig.read(sub_config(config, "vision_config"), self._num_tokens)

    @property
    def image_size_px(self) -> int:
        """Side of the input."""
        return self._tower.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """Places behind the tower's last stage."""
        return self._num_tokens

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and connector."""
        projector = Projector(
            self._tower.hidden_size,
            self.decoder.config.hidden_size,
            self.config.get("projector_hidden_act", "gelu"),
            rows=self._num_tokens,
            bias=bool(self.config.get("multimodal_projector_bias", True)),
            name=_PROJECTOR,
        )
        return Chain(FastViTTower(self._tower, dialect, "model.vision_tower.timm_model"), projector)

    def image_prompt(self, found: FoundProcessor) -> LlavaPrompt:
        """Return the image token repeated.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or the token is not in the vocabulary.
        """
        patch = found.settings.get("patch_size")
        if patch is not None and int(patch) != self._tower.patch_size_px:
            raise UnsupportedConfigError(
                f"processor_config.json: patch_size {patch}, but a token of the tower stands for a square of "
                f"{self._tower.patch_size_px} pixels"
            )
        token = found.token("image_token", "<image>")
        return LlavaPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=self._num_tokens,
        )
