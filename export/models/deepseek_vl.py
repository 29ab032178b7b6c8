"""DeepSeek-VL 1.3B (arXiv 2403.05525): a SigLIP tower to its last norm, two matrices, and a Llama."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.llava import LlavaPrompt
from bundle.layouts.table import KnownImagePrompt
from bundle.manifest import TensorSpec
from export.config import Raw, VisionConfig, sub_config
from export.connectors.projector import Projector
from export.family import Family
from export.found_processor import FoundProcessor
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.tower_view import tower_specs, tower_view
from export.nn.vit import Passed, tower_heads
from export.towers.siglip import VISION_DEFAULTS, SiglipTower
from export.vision_language import VisionLanguage

ALIGNER = "model.aligner"
_DEFAULTS: Raw = {"tie_word_embeddings": True}


class NormedTower(SiglipTower):
    """SigLIP's layers and the norm behind them.

    Args:
        config: The tower.
        dialect: How attention is written.
    """

    def __init__(self, config: VisionConfig, dialect: Dialect) -> None:
        super().__init__(config, dialect, "model.vision_model")
        self.post_layernorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> Passed:
        """Return what the layers made of the patches [I, N, D], the last of them normed."""
        passed = super().forward(op, pixel_values)
        return replace(passed, states=(*passed.states[:-1], self.post_layernorm(op, passed.states[-1])))


class _Vision(Module):
    def __init__(self, config: VisionConfig, dialect: Dialect, aligner: Module) -> None:
        super().__init__()
        self.tower = NormedTower(config, dialect)
        self.aligner = aligner
        self.heads = tower_heads(config.tower)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, ...]:
        passed = self.tower(op, pixel_values)
        return self.aligner(op, passed.states[-1]), *tower_view(op, passed.looks[-1], self.heads, has_class_token=False)


class DeepSeekVL(VisionLanguage):
    """`model_type` deepseek_vl."""

    text_prefix = "model.language_model"
    image_processor = "DeepseekVLImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^model\.vision_model\.vision_model\.", "model.vision_model."),
        (r"\.aligner\.linear(\d)\.", r".aligner.linear_\1."),
    )
    # the connector reads all patches: none are pooled
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r"model\.vision_model\.head\..*")

    def __init__(self, config: Raw) -> None:
        super().__init__({**_DEFAULTS, **config})
        raw = sub_config(config, "vision_config")
        kind = raw.get("model_type", "siglip_vision_model")
        if kind != "siglip_vision_model":
            raise UnsupportedConfigError(f"vision_config.model_type {kind!r}: the tower built is siglip_vision_model")
        self.tower_config = VisionConfig.read(raw, VISION_DEFAULTS)

    @property
    def image_size_px(self) -> int:
        """Side of the input."""
        return self.tower_config.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """Patches."""
        return int(self.tower_config.grid**2)

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and connector."""
        return _Vision(self.tower_config, dialect, self.aligner())

    def aligner(self) -> Module:
        """Return the connector."""
        width, out_size = self.tower_config.tower.hidden_size, self.decoder.config.hidden_size
        return Projector(width, out_size, "gelu", rows=self.tokens_per_tile, bias=True, name=ALIGNER)

    def tower_outputs(self) -> Sequence[TensorSpec]:
        """Return what tells of the last layer's attention."""
        return tower_specs(self.tokens_per_tile, tower_heads(self.tower_config.tower).size)

    def require_counted(self, found: FoundProcessor) -> None:
        """Check that the processor counts an image's tokens as the tower does.

        Raises:
            UnsupportedConfigError: It counts others.
        """
        counted = found.settings.get("num_image_tokens")
        if counted is not None and int(counted) != self.tokens_per_tile:
            raise UnsupportedConfigError(
                f"processor_config.json: num_image_tokens {counted}, but images of {self.tower_config.image_size_px} "
                f"pixels in patches of {self.tower_config.patch_size_px} make {self.tokens_per_tile} tokens"
            )

    def image_prompt(self, found: FoundProcessor) -> KnownImagePrompt:
        """Return the image token repeated.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or the token is not in the vocabulary.
        """
        self.require_counted(found)
        token = found.token("image_token", "<image_placeholder>")
        return LlavaPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=self.tokens_per_tile,
        )
