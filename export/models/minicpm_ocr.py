"""MiniCPM-OCR: MiniCPM-V 4.6 with more tokens an image, small images as they are or made larger."""

from __future__ import annotations

from typing import ClassVar

from export.config import Raw
from export.models.minicpmv4_6 import MiniCPMV46

_DEFAULTS: Raw = {"downsample_mode": "4x", "tie_word_embeddings": True}


class MiniCPMOcr(MiniCPMV46):
    """`model_type` minicpm_ocr."""

    image_processor: ClassVar[str] = "MiniCPMOcrImageProcessor"

    def __init__(self, config: Raw) -> None:
        super().__init__({**_DEFAULTS, **config})
