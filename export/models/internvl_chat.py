"""Mono-InternVL (arXiv 2410.08202; 1.5: arXiv 2507.12566): no tower, and visual experts in the decoder."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, NearestGrid
from bundle.layouts.internvl import InternVLPrompt
from export.config import Raw, VisionConfig, require, sub_config
from export.connectors.shuffled_projector import ShuffledProjector
from export.family import Family
from export.found_processor import FoundProcessor
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.quantized.method import QuantizationMethod
from export.quantized.packed_projections import PackedProjections
from export.towers.bare_patches import BarePatches
from export.vision_language import VisionLanguage

_ARCHITECTURE, _DECODER, _PATCHES = "InternLM2VEForCausalLM", "internlm2_ve", "intern_vit_patch"
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
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, as the authors' code normalises (README of OpenGVLab/Mono-InternVL, `build_transform`)."""
_SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
"""The system message of the conversation "internlm2-chat" in the authors' code."""
_TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}<|im_start|>system\n"
    + _SYSTEM
    + "<|im_end|>{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class _Vision(Module):
    def __init__(self, patches: BarePatches, projector: ShuffledProjector) -> None:
        super().__init__()
        self.patches = patches
        self.projector = projector

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.projector(op, self.patches(op, pixel_values))


class MonoInternVL(VisionLanguage):
    """`model_type` internvl_chat whose decoder has visual experts; others of that type have their own layout in `-hf`.

    A conversation is written as the authors' `chat` writes it, by their template "internlm2-chat": an image, then a
    line end. Their `multi_image_chat` numbers images besides, which is left to the caller.
    """

    text_prefix = "model.language_model"
    end_tokens: ClassVar[tuple[str, ...]] = ("<|im_end|>",)
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^language_model\.output\.", "lm_head."),
        (r"^language_model\.model\.tok_embeddings\.", "model.language_model.embed_tokens."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"\.attention_norm\.", ".input_layernorm."),
        (r"\.ffn_norm\.", ".post_attention_layernorm."),
        (r"\.feed_forward(_ve)?\.w1\.", r".mlp\1.gate_proj."),
        (r"\.feed_forward(_ve)?\.w3\.", r".mlp\1.up_proj."),
        (r"\.feed_forward(_ve)?\.w2\.", r".mlp\1.down_proj."),
        (r"\.attention\.wo(_ve)?\.", r".self_attn.o_proj\1."),
        (r"\.attention\.", ".self_attn."),
        (r"^mlp1\.0\.", "mlp1.layer_norm."),
        (r"^mlp1\.1\.", "mlp1.linear_1."),
        (r"^mlp1\.3\.", "mlp1.linear_2."),
    )
    # the class token is made and dropped
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r"vision_model\.embeddings\.class_embedding")

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        vision, text = sub_config(config, "vision_config"), sub_config(config, "llm_config")
        found = next(iter(text.get("architectures") or [""])), vision.get("model_type")
        if found != (_ARCHITECTURE, _PATCHES):
            raise UnsupportedConfigError(
                f"internvl_chat with {found[0]} and {found[1]}: only {_ARCHITECTURE} with {_PATCHES} is built of this "
                "layout; take a checkpoint in transformers' layout (-hf) of other InternVL models"
            )
        stated = [("select_layer", -1), ("ps_version", "v2"), ("pad2square", False), ("quantization_config", None)]
        require(config, [*stated, ("template", "internlm2-chat"), ("tie_word_embeddings", False)])
        require(config, [("use_backbone_lora", 0), ("use_llm_lora", 0), ("use_thumbnail", True)])
        require(text, [("tie_word_embeddings", False)])
        self._vision = VisionConfig.read(vision, _VISION_DEFAULTS)
        require(config, [("force_image_size", self._vision.image_size_px)])
        ratio = config.get("downsample_ratio", 0.5)
        self._factor = int(1 / ratio)
        if self._factor * ratio != 1 or self._vision.grid % self._factor:
            raise UnsupportedConfigError(
                f"downsample_ratio {ratio!r}: built are ratios 1/n with n dividing the {self._vision.grid} patches of "
                "a tile's side"
            )

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config."""
        return {**sub_config(self.config, "llm_config"), "model_type": _DECODER}

    @property
    def image_size_px(self) -> int:
        """Side of a tile."""
        return self._vision.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """Patches of a tile, after the shuffle."""
        return int((self._vision.grid // self._factor) ** 2)

    def own_image_spec(self) -> ImageSpec:
        """Return tiles as the config counts them; the processor's files are of another class and name none."""
        cuts, side = bool(self.config.get("dynamic_image_size", False)), self.image_size_px
        return ImageSpec(
            geometry=NearestGrid(
                height_px=side,
                width_px=side,
                least_tiles=int(self.config.get("min_dynamic_patch", 1)) if cuts else 1,
                most_tiles=int(self.config.get("max_dynamic_patch", 6)) if cuts else 1,
            ),
            resample="bicubic",
            rescale_factor=1 / 255,
            mean=_MEAN,
            std=_STD,
        )

    def stored_weights(self) -> QuantizationMethod:
        """Return how the checkpoint stores its weights: queries, keys and values of attention in one matrix."""
        return PackedProjections(self.decoder.config)

    def vision(self, dialect: Dialect) -> Module:
        """Return patches and projection."""
        width, size = self._vision.tower.hidden_size, self.decoder.config.hidden_size
        projector = ShuffledProjector(self._vision.grid, width, size, self._factor, "gelu", name="mlp1")
        return _Vision(BarePatches(self._vision, "vision_model"), projector)

    def own_template(self) -> str:
        """Return the authors' conversation; a template among the tokenizer's files is of the decoder alone."""
        return _TEMPLATE

    def image_prompt(self, found: FoundProcessor) -> InternVLPrompt:
        """Return the tokens of all tiles between a start and an end.

        Raises:
            UnsupportedConfigError: A token is not in the vocabulary.
        """
        token, start, end = "<IMG_CONTEXT>", "<img>", "</img>"
        found.vocabulary.id_of(start, "the token before an image")
        found.vocabulary.id_of(end, "the token behind an image")
        return InternVLPrompt(
            image_token=token,
            image_token_id=found.vocabulary.id_of(token, "the image token"),
            tokens_per_tile=self.tokens_per_tile,
            start_token=start,
            end_token=end,
        )
