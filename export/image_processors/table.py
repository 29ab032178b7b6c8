"""Which image processor classes are read, by their name less its "Fast" or "Pil" ending."""

from __future__ import annotations

from collections.abc import Mapping

from export.image_processors.aria import ARIA
from export.image_processors.blip import BLIP
from export.image_processors.clip import CLIP
from export.image_processors.deepseek_ocr2 import DEEPSEEK_OCR2, UNLIMITED_OCR
from export.image_processors.deepseek_vl import DEEPSEEK_VL
from export.image_processors.deepseek_vl_hybrid import DEEPSEEK_VL_HYBRID
from export.image_processors.deit import DEIT
from export.image_processors.dinov3 import DINOV3
from export.image_processors.donut import DONUT
from export.image_processors.efficientnet import EFFICIENTNET
from export.image_processors.flava import FLAVA
from export.image_processors.fuyu import FUYU
from export.image_processors.gemma3 import GEMMA3
from export.image_processors.gemma4 import GEMMA4
from export.image_processors.glm46v import GLM46V
from export.image_processors.got_ocr2 import GOT_OCR2
from export.image_processors.granite_docling import GRANITE_DOCLING
from export.image_processors.hunyuan_vl import HUNYUAN_VL
from export.image_processors.idefics2 import IDEFICS2
from export.image_processors.idefics3 import IDEFICS3
from export.image_processors.image_processor import ImageProcessor
from export.image_processors.lfm2_vl import LFM2_VL
from export.image_processors.llava import LLAVA
from export.image_processors.llava_next import LLAVA_NEXT
from export.image_processors.llava_onevision import LLAVA_ONEVISION
from export.image_processors.minicpmv4_6 import MINICPM_OCR, MINICPMV4_6
from export.image_processors.mllama import MLLAMA
from export.image_processors.molmo2 import MOLMO2
from export.image_processors.ovis2 import OVIS2
from export.image_processors.paddleocr_vl import PADDLEOCR_VL
from export.image_processors.perception_lm import PERCEPTION_LM
from export.image_processors.pixtral import PIXTRAL
from export.image_processors.qwen2_vl import QWEN2_VL
from export.image_processors.siglip import SIGLIP
from export.image_processors.siglip2 import SIGLIP2
from export.image_processors.texthawk import TEXTHAWK
from export.image_processors.tipsv2 import TIPSV2
from export.image_processors.video_llama_3 import VIDEO_LLAMA_3
from export.image_processors.vilt import BRIDGETOWER, VILT
from export.image_processors.vit import VIT

IMAGE_PROCESSORS: Mapping[str, ImageProcessor] = {
    "AriaImageProcessor": ARIA,
    "BlipImageProcessor": BLIP,
    "BridgeTowerImageProcessor": BRIDGETOWER,
    "BitImageProcessor": CLIP,
    "CLIPFeatureExtractor": CLIP,
    "ChineseCLIPFeatureExtractor": CLIP,
    "ChineseCLIPImageProcessor": CLIP,
    "CLIPImageProcessor": CLIP,
    "Gemma3ImageProcessor": GEMMA3,
    "Gemma4ImageProcessor": GEMMA4,
    "DeepseekOcr2ImageProcessor": DEEPSEEK_OCR2,
    "DeepseekVLHybridImageProcessor": DEEPSEEK_VL_HYBRID,
    "DeepseekVLImageProcessor": DEEPSEEK_VL,
    "DeiTFeatureExtractor": DEIT,
    "DeiTImageProcessor": DEIT,
    "DonutFeatureExtractor": DONUT,
    "DonutImageProcessor": DONUT,
    "DINOv3ViTImageProcessor": DINOV3,
    "EfficientNetImageProcessor": EFFICIENTNET,
    "FlavaFeatureExtractor": FLAVA,
    "FlavaImageProcessor": FLAVA,
    "FuyuImageProcessor": FUYU,
    "Glm46VImageProcessor": GLM46V,
    "GotOcr2ImageProcessor": GOT_OCR2,
    "GraniteDoclingImageProcessor": GRANITE_DOCLING,
    "HunYuanVLImageProcessor": HUNYUAN_VL,
    "Idefics2ImageProcessor": IDEFICS2,
    "Idefics3ImageProcessor": IDEFICS3,
    "JanusImageProcessor": DEEPSEEK_VL,
    "Lfm2VlImageProcessor": LFM2_VL,
    "MiniCPMOcrImageProcessor": MINICPM_OCR,
    "MiniCPMV4_6ImageProcessor": MINICPMV4_6,
    "MllamaImageProcessor": MLLAMA,
    "Molmo2ImageProcessor": MOLMO2,
    "LlavaImageProcessor": LLAVA,
    "LlavaNextImageProcessor": LLAVA_NEXT,
    "LlavaOnevisionImageProcessor": LLAVA_ONEVISION,
    "Ovis2ImageProcessor": OVIS2,
    "PaddleOCRVLImageProcessor": PADDLEOCR_VL,
    "PerceptionLMImageProcessor": PERCEPTION_LM,
    "PixtralImageProcessor": PIXTRAL,
    "Qwen2VLImageProcessor": QWEN2_VL,
    "Siglip2ImageProcessor": SIGLIP2,
    "SiglipImageProcessor": SIGLIP,
    "SmolVLMImageProcessor": IDEFICS3,
    "UnlimitedOcrImageProcessor": UNLIMITED_OCR,
    "ViTFeatureExtractor": VIT,
    "TextHawkImageProcessor": TEXTHAWK,
    "Tipsv2ImageProcessor": TIPSV2,
    "ViTImageProcessor": VIT,
    "VideoLlama3ImageProcessor": VIDEO_LLAMA_3,
    "ViltImageProcessor": VILT,
}
