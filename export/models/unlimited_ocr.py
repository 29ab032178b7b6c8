"""Unlimited-OCR: DeepSeek-OCR's parts, and answers whose tokens see the prompt and the newest tokens before them."""

from __future__ import annotations

from typing import Any

from bundle.layouts.deepseek_ocr import UnlimitedOcrPrompt
from export.config import Raw
from export.found_processor import FoundProcessor
from export.models.authors_towers import towers_of, with_language
from export.models.deepseek_ocr import DeepSeekOcr
from export.models.deepseek_ocr2 import TEMPLATE

_TEXT = "unlimited_ocr_text"


class UnlimitedOcr(DeepSeekOcr):
    """`model_type` unlimited_ocr, in transformers' keys or, as first published, in those of DeepSeek-OCR's authors."""

    default_text = _TEXT

    def __init__(self, config: Raw) -> None:
        full: dict[str, Any] = {**config, "vision_config": config.get("vision_config") or {}}
        if not config.get("text_config"):
            full = with_language({**full, "text_config": None}, _TEXT)
            if "sliding_window" in config:
                full["text_config"] = {**full["text_config"], "sliding_window": config["sliding_window"]}
        if "width" in full["vision_config"]:
            full["vision_config"] = towers_of(full["vision_config"])
        super().__init__(full)

    def image_prompt(self, found: FoundProcessor) -> UnlimitedOcrPrompt:
        """Return the tokens of tiles and of all of an image, line by line.

        Raises:
            UnsupportedConfigError: The image token is not in the vocabulary.
        """
        return UnlimitedOcrPrompt.model_validate({**super().image_prompt(found).model_dump(), "kind": "unlimited_ocr"})

    def default_template(self, found: FoundProcessor) -> str:
        """Return an image, a line end and what is asked for, message by message."""
        return TEMPLATE
