"""Qianfan-OCR (arXiv 2603.13398): InternVL's tower, shuffle and connector before a Qwen3; documents."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.layouts.internvl import InternVLPrompt
from bundle.layouts.table import KnownImagePrompt
from export.config import Raw, sub_config
from export.found_processor import FoundProcessor
from export.models.internvl import InternVL
from export.quantized.method import QuantizationMethod
from export.quantized.packed_projections import PackedProjections, one_after_another
from export.spoken_tokens import document_markup
from export.towers.internvl import AUTHORS_NAMES

_PLACEHOLDER = "<image>"


class QianfanOCR(InternVL):
    """`model_type` qianfan_ocr; weights in transformers' names or in those of InternVL's authors, which are published.

    What its processor writes for an image, and how images are cut, is InternVL's; templates write "<image>" for one.
    """

    default_text = "qwen3"
    template_placeholder = _PLACEHOLDER
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        *AUTHORS_NAMES,
        *InternVL.renames,
        (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
        (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
        (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    )

    def __init__(self, config: Raw) -> None:
        tower = {"attention_bias": True, **sub_config(config, "vision_config")}
        super().__init__({"tie_word_embeddings": False, **config, "vision_config": tower})

    def stored_weights(self) -> QuantizationMethod:
        """Return how the checkpoint stores its weights: in the authors' names the tower's projections are in one."""
        if self.config.get("quantization_config") is not None:
            return super().stored_weights()
        width = self.tower_config.vision.tower.hidden_size
        return PackedProjections({"attention.qkv": one_after_another(q_proj=width, k_proj=width, v_proj=width)})

    def image_prompt(self, found: FoundProcessor) -> InternVLPrompt:
        """Return the tokens of all tiles between a start and an end.

        Raises:
            UnsupportedConfigError: As InternVL; or templates write something else for an image.
        """
        placeholder = found.settings.get("image_placeholder_token", _PLACEHOLDER)
        if placeholder != _PLACEHOLDER:
            raise UnsupportedConfigError(
                f"processor_config.json: image_placeholder_token {placeholder!r}; built is {_PLACEHOLDER!r}: write "
                "that there and in the chat template"
            )
        return super().image_prompt(found)

    def spoken_tokens(self, found: FoundProcessor, prompt: KnownImagePrompt, ends: Collection[int]) -> Collection[str]:
        """Return the markup of documents, such as places of boxes."""
        return document_markup(found.vocabulary, prompt, ends)
