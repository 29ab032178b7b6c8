"""Idefics2 (arXiv 2405.02246): images in their own shape, a perceiver of 64 tokens each, and a Mistral."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.image import Bounded, ImageSpec
from bundle.layouts.idefics2 import Idefics2Prompt
from export.config import DecoderConfig, Raw, VisionConfig, require, sub_config
from export.connectors.perceiver import Perceiver, PerceiverConfig
from export.found_processor import FoundProcessor
from export.nn.chain import Chain
from export.nn.dialect import Dialect, Heads
from export.nn.mlp import GatedMLP
from export.nn.module import Module
from export.nn.patches import usual_patches
from export.towers.idefics2 import VISION_DEFAULTS, Idefics2Tower, longest_side
from export.vision_language import VisionLanguage

_PERCEIVER_DEFAULTS: Raw = {
    "hidden_act": "silu",
    "hidden_size": 4096,
    "rms_norm_eps": 1e-6,
    "resampler_n_latents": 64,
    "resampler_depth": 3,
    "resampler_n_heads": 16,
    "resampler_head_dim": 96,
    "num_key_value_heads": 4,
}


class _Connector(Module):
    def __init__(self, vision: VisionConfig, text: DecoderConfig, perceiver: PerceiverConfig, dialect: Dialect) -> None:
        super().__init__("model.connector")
        rows = usual_patches(vision.patch_size_px)
        self.modality_projection = GatedMLP(text, rows=rows, in_size=vision.tower.hidden_size)
        self.perceiver_resampler = Perceiver(perceiver, dialect, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.perceiver_resampler(op, self.modality_projection(op, x))


class Idefics2(VisionLanguage):
    """`model_type` idefics2."""

    text_prefix = "model.text_model"
    default_text = "mistral"
    image_processor: ClassVar[str] = "Idefics2ImageProcessor"

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._vision = VisionConfig.read(sub_config(config, "vision_config"), VISION_DEFAULTS)
        self._perceiver = self._read_perceiver()

    def _read_perceiver(self) -> PerceiverConfig:
        text, stated = self.decoder.config, {**_PERCEIVER_DEFAULTS, **(self.config.get("perceiver_config") or {})}
        eps = stated["rms_norm_eps"]
        if stated["hidden_size"] != text.hidden_size:  # transformers takes both of the decoder then
            eps = text.rms_norm_eps
        num, num_kv, size = (
            int(stated[key]) for key in ("resampler_n_heads", "num_key_value_heads", "resampler_head_dim")
        )
        if num % num_kv:
            raise UnsupportedConfigError(
                f"perceiver_config: {num} heads of queries cannot share {num_kv} of keys evenly"
            )
        return PerceiverConfig(
            hidden_size=text.hidden_size,
            num_latents=int(stated["resampler_n_latents"]),
            num_layers=int(stated["resampler_depth"]),
            heads=Heads(num, num_kv, size, float(size) ** -0.5),
            hidden_act=stated["hidden_act"],
            rms_norm_eps=float(eps),
        )

    @property
    def image_size_px(self) -> None:
        """None: images keep their shape."""
        return

    @property
    def tokens_per_tile(self) -> int:
        """Learned queries."""
        return self._perceiver.num_latents

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images keep their shape, and that their sides have a patch at least and no more than are placed.

        Raises:
            UnsupportedConfigError: They do not.
        """
        geometry, patch = spec.geometry, self._vision.patch_size_px
        longest_px = longest_side(self._vision.grid) * patch
        if not isinstance(geometry, Bounded) or geometry.shortest_px < patch or geometry.longest_px > longest_px:
            raise UnsupportedConfigError(
                f"the processor makes images by {geometry}; built are sides between two bounds, of a patch of {patch} "
                f"pixels at least and {longest_px} pixels at most"
            )

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, projection and resampler."""
        tower = Idefics2Tower(self._vision, dialect, "model.vision_model")
        return Chain(tower, _Connector(self._vision, self.decoder.config, self._perceiver, dialect))

    def image_prompt(self, found: FoundProcessor) -> Idefics2Prompt:
        """Return as many tokens for each image and quarter, between fake tokens.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or a token is not in the vocabulary.
        """
        require(found.settings, [("image_seq_len", self.tokens_per_tile)])
        token = found.token("image_token", "<image>")
        fake_token = found.token("image_boundary_token", "<fake_token_around_image>")
        found.vocabulary.id_of(fake_token, "the token around images")
        return Idefics2Prompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=self.tokens_per_tile,
            fake_token=fake_token,
        )
