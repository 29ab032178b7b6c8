"""Which image processor classes are read, by their name less its "Fast" or "Pil" ending."""

from __future__ import annotations

from collections.abc import Mapping

from export.image_processors.clip import CHINESE_CLIP, CLIP
from export.image_processors.gemma3 import GEMMA3
from export.image_processors.got_ocr2 import GOT_OCR2
from export.image_processors.idefics3 import IDEFICS3
from export.image_processors.image_processor import ImageProcessor
from export.image_processors.paddleocr_vl import PADDLEOCR_VL
from export.image_processors.qwen2_vl import QWEN2_VL
from export.image_processors.siglip import SIGLIP

IMAGE_PROCESSORS: Mapping[str, ImageProcessor] = {
    "CLIPFeatureExtractor": CLIP,
    "ChineseCLIPFeatureExtractor": CHINESE_CLIP,
    "ChineseCLIPImageProcessor": CHINESE_CLIP,
    "CLIPImageProcessor": CLIP,
    "Gemma3ImageProcessor": GEMMA3,
    "GotOcr2ImageProcessor": GOT_OCR2,
    "Idefics3ImageProcessor": IDEFICS3,
    "LlavaImageProcessor": CLIP,
    "PaddleOCRVLImageProcessor": PADDLEOCR_VL,
    "Qwen2VLImageProcessor": QWEN2_VL,
    "SiglipImageProcessor": SIGLIP,
    "SmolVLMImageProcessor": IDEFICS3,
}
