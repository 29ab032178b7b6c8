"""DeepSeek-VL2 Tiny (arXiv 2412.10302) as its authors publish it: SigLIP, squares of patches, a decoder of experts.

After the authors' code (deepseek-ai/DeepSeek-VL2, deepseek_vl2/models). The larger ones, whose attention goes through
latent vectors, are refused by their decoder.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, PaddedPinpoints
from bundle.layouts.deepseek_vl2 import DeepSeekVL2Prompt
from bundle.layouts.table import KnownImagePrompt
from export.config import Raw, VisionConfig, require, sub_config
from export.connectors.downsampled_projector import DownsampledProjector, DownsampledSizes
from export.connectors.line_end import LineEnd
from export.family import Family
from export.found_processor import FoundProcessor
from export.models.deepseek_ocr2 import MARKS
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.quantized.method import QuantizationMethod
from export.quantized.packed_projections import PackedProjections, one_after_another
from export.towers.siglip import VISION_DEFAULTS, OneImageSiglipTower
from export.vision_language import VisionLanguage

_VISION: Raw = {
    "image_size": 384,
    "patch_size": 16,
    "width": 1024,
    "layers": 24,
    "heads": 16,
    "mlp_ratio": 4,
    "global_pool": "map",
    "ignore_head": True,
    "class_token": False,
}
_HALF = 0.5
_MOST_CUT = 2
"""Images of a prompt, among more of which none is cut (`processing_deepseek_vl_v2.py`)."""
_EXPERTS = ("n_routed_experts", "n_shared_experts", "num_experts_per_tok")
_ADDED = ("<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<|User|>", "<|Assistant|>")
"""Tokens that the authors' processor adds where a tokenizer lacks them, in its order."""
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% set text %}{% if message.content is string %}"
    "{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endset %}"
    "{% if message.role == 'user' %}<|User|>:{% if text | trim %} {{ text | trim }}\n\n{% endif %}<|Assistant|>:"
    "{% elif message.role == 'assistant' %}{{ text | trim }}{{ eos_token }}"
    "{% elif loop.first %}{{ text | trim }}"
    "{% else %}{{ raise_exception('a system message stands before all others') }}{% endif %}{% endfor %}"
)
"""As the processor writes conversations (`format_messages_v2`), an image with a line end behind it, as in its examples.
An answer's words are cut into tokens by themselves there; here behind the colon, which differs where the tokenizer
joins both."""


class DeepSeekVL2(VisionLanguage):
    """`model_type` deepseek_vl_v2 of class DeepseekVLV2ForCausalLM, or of none."""

    text_prefix = "model.language_model"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^language\.lm_head\.", "lm_head."),
        (r"^language\.model\.", "model.language_model."),
        (r"\.mlp\.gate\.", ".mlp.router."),
        (r"\.mlp\.shared_experts\.", ".mlp.shared_expert."),
        (r"^vision\.", "model.vision_tower."),
        (r"^(model\.vision_tower)\.patch_embed\.proj\.", r"\1.embeddings.patch_embedding."),
        (r"^(model\.vision_tower)\.pos_embed$", r"\1.embeddings.position_embedding.weight"),
        (r"^(model\.vision_tower)\.norm\.", r"\1.post_layernorm."),
        (r"^(model\.vision_tower)\.blocks\.(\d+)\.norm([12])\.", r"\1.blocks.\2.layer_norm\3."),
        (r"^(model\.vision_tower)\.blocks\.(\d+)\.attn\.proj\.", r"\1.blocks.\2.self_attn.out_proj."),
        (r"^(model\.vision_tower)\.blocks\.(\d+)\.attn\.", r"\1.blocks.\2.self_attn."),
        (r"^(model\.vision_tower)\.blocks\.", r"\1.encoder.layers."),
        (r"^projector\.", "model.projector."),
        (r"^(image_newline|view_seperator)$", r"model.\1"),
    )
    # the connector reads all patches: none are pooled
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r"model\.vision_tower\.attn_pool\..*")

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        require(config, [("tile_tag", "2D"), ("global_view_pos", "head"), ("quantization_config", None)])
        if "tile_tag" not in config:
            raise UnsupportedConfigError("config.json lacks tile_tag, which the authors' code wants; built is '2D'")
        words = sub_config(config, "language_config")
        require(words, [("tie_word_embeddings", False), ("lm_head", True), ("rm_head", False)])
        if lacking := [key for key in _EXPERTS if words.get(key) is None]:
            raise UnsupportedConfigError(f"language_config lacks {', '.join(lacking)}: decoders of experts are built")
        full = {**_VISION, **sub_config(config, "vision_config")}
        require(full, [(key, _VISION[key]) for key in ("global_pool", "ignore_head", "class_token")])
        words = {
            "hidden_size": full["width"],
            "intermediate_size": int(full["width"] * full["mlp_ratio"]),
            "num_hidden_layers": full["layers"],
            "num_attention_heads": full["heads"],
        }
        self._vision = VisionConfig.read({**full, **words}, VISION_DEFAULTS)
        self._projector = DownsampledSizes.read(sub_config(config, "projector_config"))
        self._check_widths()

    def _check_widths(self) -> None:
        seen, taken = self._vision.tower.hidden_size, self._projector.in_size
        made, wanted = self._projector.out_size, self.decoder.config.hidden_size
        if seen != taken or made != wanted:
            raise UnsupportedConfigError(
                f"projector_config: input_dim {taken} and n_embed {made}, but the tower is {seen} wide and the decoder "
                f"{wanted}"
            )

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, with the authors' defaults where they are their own."""
        stated = sub_config(self.config, "language_config")
        return {"num_hidden_layers": 30, "first_k_dense_replace": 0, **stated, "model_type": "deepseek_v2"}

    @property
    def image_size_px(self) -> int:
        """Side of a tile."""
        return self._vision.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """Squares of patches of a tile, lines not ended."""
        return self._projector.side(self._vision.grid) ** 2

    @property
    def rows_per_tile(self) -> int:
        """Those, and two learned rows."""
        return self.tokens_per_tile + 2

    def own_image_spec(self) -> ImageSpec:
        """Return the grids of the config; the processor's file, which says them again, is read by `image_prompt`.

        Raises:
            UnsupportedConfigError: A grid is no whole tiles.
        """
        side = self._vision.image_size_px
        candidates = self.config.get("candidate_resolutions") or [[384, 384]]
        if candidates[0][0] != side or any(width % side or height % side for width, height in candidates):
            raise UnsupportedConfigError(
                f"candidate_resolutions {candidates!r}: wanted are widths and heights of whole tiles of {side} px, one "
                "tile wide the first of them"
            )
        grey = int(_HALF * 255)
        return ImageSpec(
            geometry=PaddedPinpoints(
                tile_px=side,
                grids=tuple((height // side, width // side) for width, height in candidates),
                colour=(grey, grey, grey),
                most_cut=_MOST_CUT,
            ),
            resample="bicubic",
            rescale_factor=1 / 255,
            mean=(_HALF,) * 3,
            std=(_HALF,) * 3,
        )

    def stored_weights(self) -> QuantizationMethod:
        """Return how weights are stored: the tower's projections in one matrix each."""
        width = self._vision.tower.hidden_size
        return PackedProjections({"self_attn.qkv": one_after_another(q_proj=width, k_proj=width, v_proj=width)})

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and connector, the row that ends a line, and the one between an image's two views."""
        size = self.decoder.config.hidden_size
        tower = OneImageSiglipTower(self._vision, dialect, "model.vision_tower")
        projector = DownsampledProjector(self._projector, self._vision.grid, name="model.projector")
        ended = LineEnd(Chain(tower, projector, ""), size, name="model.image_newline")
        return LineEnd(ended, size, name="model.view_seperator")

    def own_tokens(self, ids: Mapping[str, int]) -> dict[str, int]:
        """Return what the authors' processor adds to a tokenizer, behind its tokens."""
        lacking = [token for token in _ADDED if token not in ids]
        first = max(ids.values(), default=-1) + 1
        return {token: first + number for number, token in enumerate(lacking)}

    def own_template(self) -> str:
        """Return conversations as the processor writes them; files hold no template of theirs."""
        return _TEMPLATE

    def spoken_tokens(self, found: FoundProcessor, prompt: KnownImagePrompt, ends: Collection[int]) -> Collection[str]:
        """Return the marks of boxes, which a question asks for by one of them."""
        return [mark for mark in MARKS if mark in found.vocabulary.ids]

    def image_prompt(self, found: FoundProcessor) -> DeepSeekVL2Prompt:
        """Return the tokens of an image.

        Raises:
            UnsupportedConfigError: The processor contradicts the config, or a token is not in the vocabulary.
        """
        told: dict[str, Any] = {
            "candidate_resolutions": self.config.get("candidate_resolutions"),
            "patch_size": self._vision.patch_size_px,
            "downsample_ratio": self._projector.factor,
            "image_mean": [_HALF] * 3,
            "image_std": [_HALF] * 3,
            "normalize": True,
            "image_token": "<image>",
            "sft_format": "deepseek",
        }
        for key, built in told.items():
            if (stated := found.settings.get(key)) is not None and stated != built:
                raise UnsupportedConfigError(f"processor_config.json: {key} is {stated!r:.80}; built is {built!r:.80}")
        for token in ("<|User|>", "<|Assistant|>"):
            found.vocabulary.id_of(token, "the token of a role")
        token = "<image>"
        return DeepSeekVL2Prompt(
            image_token=token,
            image_token_id=found.vocabulary.id_of(token, "the image token"),
            tokens_per_tile=self.tokens_per_tile,
        )
