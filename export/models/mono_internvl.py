"""Mono-InternVL (arXiv 2410.08202; 1.5: arXiv 2507.12566): no tower, and visual experts in the decoder."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from export.config import Raw, VisionConfig, require, sub_config
from export.family import Family
from export.models.internvl_authors import AuthorsLayout
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.quantized.method import QuantizationMethod
from export.quantized.packed_projections import PackedProjections, by_shared_heads
from export.towers.bare_patches import BarePatches

DECODER = "InternLM2VEForCausalLM"
"""As `llm_config.architectures` names it."""
PATCHES = "intern_vit_patch"
"""`vision_config.model_type`."""
_VISION_DEFAULTS: Raw = {
    "hidden_size": 3200,
    "intermediate_size": 12_800,
    "num_hidden_layers": 48,
    "num_attention_heads": 25,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}


class MonoInternVL(AuthorsLayout):
    """`model_type` internvl_chat whose decoder has visual experts."""

    # the class token is made and dropped
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r"vision_model\.embeddings\.class_embedding")
    writes_first_token = True

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        require(config, [("template", "internlm2-chat"), ("tie_word_embeddings", False)])
        require(sub_config(config, "llm_config"), [("tie_word_embeddings", False)])

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config."""
        return {**sub_config(self.config, "llm_config"), "model_type": "internlm2_ve"}

    @cached_property
    def vision_sizes(self) -> VisionConfig:
        """Sizes of patches."""
        return VisionConfig.read(sub_config(self.config, "vision_config"), _VISION_DEFAULTS)

    def stored_weights(self) -> QuantizationMethod:
        """Return how the checkpoint stores its weights: queries, keys and values of attention in one matrix."""
        sizes = self.decoder.config
        return PackedProjections({f"wqkv{kind}": by_shared_heads(sizes, kind) for kind in ("", "_ve")})

    def vision(self, dialect: Dialect) -> Module:
        """Return patches and projection."""
        return Chain(BarePatches(self.vision_sizes, "vision_model"), self.projector)
