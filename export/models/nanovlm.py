"""nanoVLM (huggingface/nanoVLM) as its code saves it: a SigLIP tower, pixel shuffle, one matrix, and a SmolLM2.

A config is the training code's dataclass, without a `model_type`, and tells of three generations by its keys:

- nanoVLM-222M, without `vlm_extra_tokens`: an image is stretched to a tile, its rows come first, then "Question: ...
  Answer:";
- nanoVLM-450M, with a token for images: an image is stretched to a tile, and its rows come before a message of a chat;
- nanoVLM-230M-8k and 460M-8k, with `max_img_size`, a marker for the whole image and one for each tile: the whole image,
  then its tiles; several images of a conversation are numbered.

The tokenizer is that of `lm_tokenizer`, which is published elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.image import Fixed, ImageSpec, StretchedGrid
from bundle.layouts.llava import LlavaPrompt
from bundle.layouts.nanovlm import NanoVLMPrompt
from export.config import Raw, VisionConfig, require
from export.connectors.pixel_shuffle import PixelShuffle
from export.family import Family
from export.found_processor import FoundProcessor
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.quantized.method import QuantizationMethod
from export.quantized.packed_projections import PackedProjections, one_after_another
from export.towers.siglip import VISION_DEFAULTS, OneImageSiglipTower
from export.vision_language import VisionLanguage

_BUILT = [("vit_cls_flag", False), ("lm_attn_scaling", 1.0), ("lm_use_tokens", False)]
_IMAGE, _WHOLE = "image_token", "global_image_token"
# {image} stands for the image token
_QUESTION = (
    "{% set content = messages[0].content %}{% set shown = [] if content is string else "
    "content | selectattr('type', 'equalto', 'image') | list %}"
    "{% if messages | length != 1 or messages[0].role != 'user' or shown | length > 1 %}"
    "{{ raise_exception('this model answers one message of a user about one image; it knows no turns and no system "
    "message') }}{% endif %}"
    "{% if shown %}{{ {image} }}{% endif %}{{ 'Question: ' }}{% if content is string %}{{ content }}{% else %}"
    "{% for part in content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endif %}{{ ' Answer:' }}"
)
_IN_STRINGS = (
    "{% set seen = namespace(number=0, images=0, told=[]) %}{% for message in messages %}"
    "{% if message.content is not string %}{% for part in message.content if part.type == 'image' %}"
    "{% set seen.images = seen.images + 1 %}{% endfor %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% set text %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content if part.type == 'image' %}{numbered}{{ {image} }}"
    "{% set seen.number = seen.number + 1 %}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endif %}{% endset %}"
    "{% set seen.told = seen.told + [{'role': message.role, 'content': text}] %}{% endfor %}"
    "{% set messages = seen.told %}"
)
"""Before a template that reads a message as one string: images of a message before its text, as in training."""
_NUMBERED = "{% if seen.images > 1 %}{{ '<image: ' ~ seen.number ~ '>' }}{% endif %}"


class NanoVLM(VisionLanguage):
    """`model_type` nanovlm, which `export.checkpoint` gives a config of its keys."""

    text_prefix = "model.language_model"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^vision_encoder\.", "model.vision_tower."),
        (r"^(model\.vision_tower)\.patch_embedding\.conv\.", r"\1.embeddings.patch_embedding."),
        (r"^(model\.vision_tower)\.patch_embedding\.position_embedding$", r"\1.embeddings.position_embedding.weight"),
        (r"^(model\.vision_tower)\.layer_norm\.", r"\1.post_layernorm."),
        (r"^(model\.vision_tower)\.blocks\.(\d+)\.ln([12])\.", r"\1.blocks.\2.layer_norm\3."),
        (r"^(model\.vision_tower)\.blocks\.(\d+)\.attn\.", r"\1.blocks.\2.self_attn."),
        (r"^(model\.vision_tower)\.blocks\.", r"\1.encoder.layers."),
        (r"^MP\.proj\.", "model.connector.modality_projection.proj."),
        (r"^decoder\.head\.", "lm_head."),
        (r"^decoder\.token_embedding\.", "decoder.embed_tokens."),
        (r"^decoder\.blocks\.(\d+)\.attn\.out_proj\.", r"decoder.blocks.\1.self_attn.o_proj."),
        (r"^decoder\.blocks\.(\d+)\.attn\.", r"decoder.blocks.\1.self_attn."),
        (r"^decoder\.blocks\.(\d+)\.norm1\.", r"decoder.blocks.\1.input_layernorm."),
        (r"^decoder\.blocks\.(\d+)\.norm2\.", r"decoder.blocks.\1.post_attention_layernorm."),
        (r"^decoder\.blocks\.", "decoder.layers."),
        (r"^decoder\.", "model.language_model."),
    )
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r"model\.language_model\.rotary_embd\.inv_freq")

    def __init__(self, config: Raw) -> None:
        super().__init__({**config, "tie_word_embeddings": config.get("lm_tie_weights", True)})
        require(config, _BUILT)
        words = {
            "hidden_size": "vit_hidden_dim",
            "intermediate_size": "vit_inter_dim",
            "num_hidden_layers": "vit_n_blocks",
            "num_attention_heads": "vit_n_heads",
            "image_size": "vit_img_size",
            "patch_size": "vit_patch_size",
            "layer_norm_eps": "vit_ln_eps",
        }
        self._vision = VisionConfig.read(_renamed(config, words), VISION_DEFAULTS)
        self._factor = int(config["mp_pixel_shuffle_factor"])
        if self._vision.grid % self._factor:
            raise UnsupportedConfigError(
                f"mp_pixel_shuffle_factor {self._factor} does not divide the {self._vision.grid} patches of a tile's "
                "side"
            )
        require(config, [("mp_image_token_length", self.tokens_per_tile)])
        self._check_markers()

    @property
    def _tokens(self) -> Mapping[str, str]:
        """Tokens that the tokenizer lacks, by what they are; none of the first generation."""
        return self.config.get("vlm_extra_tokens") or {}

    @property
    def _cuts(self) -> bool:
        """Whether images are cut into tiles."""
        return self.config.get("max_img_size") is not None

    def _check_markers(self) -> None:
        """Check that tokens are there for all that images become.

        Raises:
            UnsupportedConfigError: They are not, or are written otherwise.
        """
        told = self._tokens
        if told and _IMAGE not in told:
            raise UnsupportedConfigError(f"vlm_extra_tokens {sorted(told)} name no {_IMAGE}")
        if not self._cuts:
            return
        if _WHOLE not in told:
            raise UnsupportedConfigError(
                f"vlm_extra_tokens name no {_WHOLE}, and max_img_size is {self.config['max_img_size']}: tiles without "
                "the whole image before them (July 2025) are not built"
            )
        most = int(self.config["max_img_size"]) // self._vision.image_size_px
        for row, col in ((row, col) for row in range(1, most + 1) for col in range(1, most + 1)):
            marker = f"<row_{row}_col_{col}>"
            if told.get(f"r{row}c{col}") != marker:
                raise UnsupportedConfigError(
                    f"vlm_extra_tokens.r{row}c{col} is {told.get(f'r{row}c{col}')!r}; the marker of a tile is built as "
                    f"{marker!r}, for each of {most} x {most}"
                )

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, in the words of a Llama."""
        words = {
            "vocab_size": "lm_vocab_size",
            "hidden_size": "lm_hidden_dim",
            "intermediate_size": "lm_inter_dim",
            "num_hidden_layers": "lm_n_blocks",
            "num_attention_heads": "lm_n_heads",
            "num_key_value_heads": "lm_n_kv_heads",
            "max_position_embeddings": "lm_max_position_embeddings",
            "rms_norm_eps": "lm_rms_eps",
            "rope_theta": "lm_re_base",
        }
        return {"model_type": "llama", **_renamed(self.config, words)}

    @property
    def image_size_px(self) -> int:
        """Side of a tile."""
        return self._vision.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """Patches of a tile, after the shuffle."""
        return int((self._vision.grid // self._factor) ** 2)

    @property
    def tokenizer_home(self) -> str | None:
        """The repository of the decoder's tokenizer."""
        return self.config.get("lm_tokenizer")

    def own_image_spec(self) -> ImageSpec:
        """Return what the training code makes of an image: bytes over 255, which nothing centres."""
        side, longest = self._vision.image_size_px, self.config.get("max_img_size")
        geometry = (
            Fixed(height_px=side, width_px=side)
            if longest is None
            else StretchedGrid(
                tile_px=side, longest_px=int(longest), grows=bool(self.config.get("resize_to_max_side_len", False))
            )
        )
        return ImageSpec(
            geometry=geometry,
            resample="bilinear" if longest is None else "bicubic",
            rescale_factor=1 / 255,
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
        )

    def stored_weights(self) -> QuantizationMethod:
        """Return how weights are stored: the tower's projections in one matrix each."""
        width = self._vision.tower.hidden_size
        return PackedProjections({"qkv_proj": one_after_another(q_proj=width, k_proj=width, v_proj=width)})

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, shuffle and projection."""
        tower, size = OneImageSiglipTower(self._vision, dialect, "model.vision_tower"), self.decoder.config.hidden_size
        width, name = self._vision.tower.hidden_size, "model.connector"
        return Chain(tower, PixelShuffle(self._vision.grid, width, size, self._factor, name=name))

    def own_tokens(self, ids: Mapping[str, int]) -> dict[str, int]:
        """Return the config's tokens behind the tokenizer's, in the config's order, as transformers adds them."""
        lacking = [token for token in self._tokens.values() if token not in ids]
        first = max(ids.values(), default=-1) + 1
        return {token: first + number for number, token in enumerate(lacking)}

    def own_template(self) -> str | None:
        """Return conversations as the config writes them; None: as the tokenizer's files do."""
        if not self._tokens:
            return _QUESTION.replace("{image}", json.dumps(self._image_token))
        stated = self.config.get("lm_chat_template")
        return None if stated is None else self.adapted_template(str(stated))

    def adapted_template(self, text: str) -> str:
        """Return a template of one string a message as one that reads parts."""
        numbered = _NUMBERED if self._cuts else ""
        return _IN_STRINGS.replace("{numbered}", numbered).replace("{image}", json.dumps(self._image_token)) + text

    @property
    def _image_token(self) -> str:
        """What holds a row's place: of the first generation a mark of files in code, which nothing else here writes."""
        return self._tokens.get(_IMAGE, "<filename>")

    def image_prompt(self, found: FoundProcessor) -> LlavaPrompt | NanoVLMPrompt:
        """Return how images are written.

        Raises:
            UnsupportedConfigError: A token is not in the vocabulary.
        """
        token = self._image_token
        shared: dict[str, Any] = {
            "image_token": token,
            "image_token_id": found.vocabulary.id_of(token, "the image token"),
            "tokens_per_tile": self.tokens_per_tile,
        }
        return NanoVLMPrompt(global_token=self._tokens[_WHOLE], **shared) if self._cuts else LlavaPrompt(**shared)


def _renamed(config: Raw, words: Mapping[str, str]) -> dict[str, Any]:
    """Return some of a config under other names.

    Raises:
        UnsupportedConfigError: It lacks one.
    """
    if lacking := [theirs for theirs in words.values() if theirs not in config]:
        raise UnsupportedConfigError(f"config.json lacks {', '.join(lacking)}; nanoVLM's code writes all of its config")
    return {ours: config[theirs] for ours, theirs in words.items()}
