"""LightOnOCR 1 and 2 (arXiv 2601.14251): pages read by Mistral 3's tower and connector, and Qwen3."""

from __future__ import annotations

from typing import ClassVar

from export.config import Raw
from export.found_processor import FoundProcessor
from export.models.mistral3 import Mistral3

_FIXED: Raw = {"projector_hidden_act": "gelu", "multimodal_projector_bias": False, "vision_feature_layer": -1}
"""What transformers' model reads of no config."""


class LightOnOcr(Mistral3):
    """`model_type` lighton_ocr.

    Its processor cuts images into patches where Mistral's cuts them into squares of patches: of an odd row or column
    of patches the tower sees all, and no token shows it.
    """

    default_text = "qwen3"
    image_token: ClassVar[str] = "<|image_pad|>"
    processor_scales = False
    crops = True
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^model\.vision_encoder\.", "model.vision_tower."),
        (r"^model\.vision_projection\.", "model.multi_modal_projector."),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__({**config, **_FIXED})

    @property
    def steps_px(self) -> tuple[int, ...]:
        """What the sides of images may be multiples of."""
        return self.tower.patch_px, self.unit_px

    def ends(self, found: FoundProcessor) -> tuple[str, str]:
        """Return nothing: an image is its tokens alone."""
        return "", ""
