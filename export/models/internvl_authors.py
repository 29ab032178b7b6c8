"""What checkpoints in the layout of InternVL's authors share: a config of their own, and conversations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, NearestGrid
from bundle.layouts.internvl import InternVLPrompt
from export.config import Raw, VisionConfig, require, sub_config
from export.connectors.shuffled_projector import ShuffledProjector
from export.found_processor import FoundProcessor
from export.vision_language import VisionLanguage

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, as the authors' code normalises (README of OpenGVLab/InternVL, `build_transform`)."""


@dataclass(frozen=True)
class _Conversation:
    """How a conversation is written.

    Attributes:
        system: The system message where a conversation has none.
        end: Behind every message.
    """

    system: str
    end: str


_SECOND = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
_LATER = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
_CONVERSATIONS: Mapping[str, _Conversation] = {
    "internlm2-chat": _Conversation(_SECOND, "<|im_end|>"),
    "Hermes-2": _Conversation(_SECOND, "<|im_end|>"),
    "internvl2_5": _Conversation(_LATER, "<|im_end|>\n"),
}
"""By the name in `template`, as the authors' `conversation.py` has them."""
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^language_model\.(output|lm_head)\.", "lm_head."),
    (r"^language_model\.model\.tok_embeddings\.", "model.language_model.embed_tokens."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^(model\.language_model\..*)\.attention_norm\.", r"\1.input_layernorm."),
    (r"^(model\.language_model\..*)\.ffn_norm\.", r"\1.post_attention_layernorm."),
    (r"\.feed_forward(_ve)?\.w1\.", r".mlp\1.gate_proj."),
    (r"\.feed_forward(_ve)?\.w3\.", r".mlp\1.up_proj."),
    (r"\.feed_forward(_ve)?\.w2\.", r".mlp\1.down_proj."),
    (r"\.attention\.wo(_ve)?\.", r".self_attn.o_proj\1."),
    (r"^(model\.language_model\..*)\.attention\.", r"\1.self_attn."),
    (r"^mlp1\.0\.", "mlp1.layer_norm."),
    (r"^mlp1\.1\.", "mlp1.linear_1."),
    (r"^mlp1\.3\.", "mlp1.linear_2."),
)
"""Of decoders, InternLM2's names among them, and of the connector."""


class AuthorsLayout(VisionLanguage):
    """A checkpoint as InternVL's authors publish it.

    A conversation is written as their `chat` writes it, by the template that the config names: an image, then a line
    end. Their `multi_image_chat` numbers images besides, which is left to the caller.
    """

    text_prefix = "model.language_model"
    end_tokens: ClassVar[tuple[str, ...]] = ("<|im_end|>",)
    renames: ClassVar[tuple[tuple[str, str], ...]] = RENAMES

    def __init__(self, config: Raw) -> None:
        super().__init__({**config, "text_config": sub_config(config, "llm_config")})
        stated = [("select_layer", -1), ("ps_version", "v2"), ("pad2square", False), ("quantization_config", None)]
        require(config, [*stated, ("use_backbone_lora", 0), ("use_llm_lora", 0), ("use_thumbnail", True)])
        named = config.get("template")
        if named not in _CONVERSATIONS:
            raise UnsupportedConfigError(
                f"template is {named!r}; the conversations built are {', '.join(_CONVERSATIONS)}"
            )
        self._conversation = _CONVERSATIONS[str(named)]
        require(config, [("force_image_size", self.vision_sizes.image_size_px)])
        ratio, grid = config.get("downsample_ratio", 0.5), self.vision_sizes.grid
        self._factor = int(1 / ratio)
        if self._factor * ratio != 1 or grid % self._factor:
            raise UnsupportedConfigError(
                f"downsample_ratio {ratio!r}: built are ratios 1/n with n dividing the {grid} patches of a tile's side"
            )

    @property
    @abstractmethod
    def vision_sizes(self) -> VisionConfig:
        """Sizes of the part that reads tiles."""

    @property
    @abstractmethod
    def writes_first_token(self) -> bool:
        """Whether the decoder's tokenizer puts its first token before a conversation."""

    @property
    def image_size_px(self) -> int:
        """Side of a tile."""
        return self.vision_sizes.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """Patches of a tile, after the shuffle."""
        return int((self.vision_sizes.grid // self._factor) ** 2)

    @property
    def projector(self) -> ShuffledProjector:
        """The connector, made anew."""
        width, size = self.vision_sizes.tower.hidden_size, self.decoder.config.hidden_size
        return ShuffledProjector(self.vision_sizes.grid, width, size, self._factor, "gelu", name="mlp1")

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

    def own_template(self) -> str:
        """Return the authors' conversation; a template among the tokenizer's files is of the decoder alone."""
        end = self._conversation.end
        return (
            ("{{ bos_token }}" if self.writes_first_token else "")
            + "{% if messages[0].role != 'system' %}<|im_start|>system\n"
            + f"{self._conversation.system}{end}"
            + "{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n"
            "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
            "{% if part.type == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
            + end
            + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )

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
