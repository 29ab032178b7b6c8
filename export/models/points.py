"""POINTS1.5 (arXiv 2412.08443) in its authors' layout: Qwen2-VL's tower over images of any shape before a Qwen2."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.layouts.table import KnownImagePrompt
from export.config import Raw, sub_config
from export.family import Family
from export.found_processor import FoundProcessor
from export.models.qwen2_vl import Qwen2VL
from export.towers.patch_layers import PatchTowerConfig

_DECODERS = ("qwen2", "qwen3")
_UNUSED = "unused.merger"
"""Where the merger goes that the tower's class brings and the model passes by: its own is the projector."""
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>\n' }}{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""What the authors' code writes, whatever template lies beside the tokenizer."""


class Points(Qwen2VL):
    """`model_type` pointsv1.5_chat."""

    takes_groups = False
    video_settings = None
    end_tokens = ("<|im_end|>",)
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^vision_encoder\.merger\.", f"{_UNUSED}."),
        (r"^vision_encoder\.", "model.visual."),
        (r"^vision_projector\.", "model.visual.merger."),
        (r"^llm\.lm_head\.", "lm_head."),
        (r"^llm\.model\.", "model.language_model."),
    )
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, rf"{_UNUSED}\..*")

    def __init__(self, config: Raw) -> None:
        super().__init__({**config, "text_config": sub_config(config, "llm_config")})

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, a Qwen2 where it says nothing.

        Raises:
            UnsupportedConfigError: Another decoder.
        """
        stated = {"model_type": "qwen2", **sub_config(self.config, "llm_config")}
        if stated["model_type"] not in _DECODERS:
            raise UnsupportedConfigError(
                f"llm_config.model_type {stated['model_type']!r}: the decoders built are {' and '.join(_DECODERS)}"
            )
        return stated

    @property
    def tower(self) -> PatchTowerConfig:
        """Sizes of the tower; the projector behind it gives the decoder's width, whatever the tower's config says."""
        return replace(super().tower, out_size=self.decoder.config.hidden_size)

    def image_prompt(self, found: FoundProcessor) -> KnownImagePrompt:
        """Return one image token for each square of patches, all on one axis.

        Raises:
            UnsupportedConfigError: The token is not in the vocabulary, or has another id than the config says.
        """
        return super().image_prompt(found).model_copy(update={"is_flat": True})

    def own_template(self) -> str:
        """Return how the authors' code writes conversations."""
        return _TEMPLATE
