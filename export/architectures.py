"""Which class exports which `model_type`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from bundle.errors import UnknownArchitectureError
from export.config import Raw
from export.family import Family
from export.known_models import why_not_built

ARCHITECTURES: Mapping[str, str] = {
    "blip-2": "export.models.blip_2:Blip2",
    "aki": "export.models.aki:Aki",
    "aria": "export.models.aria:Aria",
    "clip": "export.models.clip:Clip",
    "dinov2": "export.models.dinov2:Dinov2",
    "florence2": "export.models.florence2:Florence2",
    "gemma3": "export.models.gemma3:Gemma3",
    "glm_ocr": "export.models.glm_ocr:GlmOcr",
    "got_ocr2": "export.models.got_ocr2:GotOcr2",
    "granite_docling": "export.models.granite_docling:GraniteDocling",
    "deepseek_vl": "export.models.deepseek_vl:DeepSeekVL",
    "deepseek_vl_hybrid": "export.models.deepseek_vl_hybrid:DeepSeekVLHybrid",
    "fast_vlm": "export.models.fast_vlm:FastVLM",
    "idefics2": "export.models.idefics2:Idefics2",
    "align": "export.models.align:Align",
    "all_in_one": "export.models.all_in_one:AllInOne",
    "altclip": "export.models.altclip:AltClip",
    "bert": "export.models.bert:BertReranker",
    "bridgetower": "export.models.bridgetower:BridgeTower",
    "chinese_clip": "export.models.chinese_clip:ChineseClip",
    "clip_fdt": "export.models.clip_fdt:ClipFdt",
    "clipseg": "export.models.clipseg:ClipSeg",
    "filip": "export.models.filip:Filip",
    "freeze_align": "export.models.freeze_align:FreezeAlign",
    "flava": "export.models.flava:Flava",
    "colmodernvbert": "export.models.colmodernvbert:ColModernVBert",
    "colpali": "export.models.colpali:ColPali",
    "colqwen2": "export.models.colqwen2:ColQwen2",
    "idefics3": "export.models.idefics3:Idefics3",
    "instructblip": "export.models.instructblip:InstructBlip",
    "internvl": "export.models.internvl:InternVL",
    "internvl_chat": "export.models.internvl_chat:MonoInternVL",
    "lfm2_vl": "export.models.lfm2_vl:Lfm2VL",
    "llava": "export.models.llava:Llava",
    "llava_adem": "export.models.llava_adem:LlavaADEM",
    "llava_mof": "export.models.llava_mof:LlavaMoF",
    "llm2clip": "export.models.llm2clip:Llm2Clip",
    "mm1": "export.models.mm1:MM1",
    "maple": "export.models.maple:Maple",
    "mllama": "export.models.mllama:Mllama",
    "llava_next": "export.models.llava_next:LlavaNext",
    "llava_onevision": "export.models.llava_onevision:LlavaOnevision",
    "llava_vlora": "export.models.llava_vlora:LlavaVLoRA",
    "kosmos-2": "export.models.kosmos2:Kosmos2",
    "ovis2": "export.models.ovis2:Ovis2",
    "modernbert": "export.models.modernbert:ModernBertReranker",
    "metaclip_2": "export.models.metaclip_2:MetaClip2",
    "open_clip": "export.models.open_clip:OpenClip",
    "paddleocr_vl": "export.models.paddleocr_vl:PaddleOCRVL",
    "paligemma": "export.models.paligemma:PaliGemma",
    "perception_lm": "export.models.perception_lm:PerceptionLM",
    "pointsv1.5_chat": "export.models.points:Points",
    "qwen2_vl": "export.models.qwen2_vl:Qwen2VL",
    "qwen2_5_vl": "export.models.qwen2_5_vl:Qwen25VL",
    "qwen3_vl": "export.models.qwen3_vl:Qwen3VL",
    "roberta": "export.models.xlm_roberta:RobertaReranker",
    "siglip": "export.models.siglip:Siglip",
    "siglip2": "export.models.siglip2:Siglip2",
    "texthawk": "export.models.texthawk:TextHawk",
    "vit": "export.models.vit:Vit",
    "vilt": "export.models.vilt:Vilt",
    "smolvlm": "export.models.idefics3:Idefics3",
    "xlm-roberta": "export.models.xlm_roberta:XlmRobertaReranker",
    "vision-text-dual-encoder": "export.models.vision_text_dual_encoder:VisionTextDualEncoder",
}
"""`model_type` of a config to "module:Class"."""


def load_family(config: Raw) -> Family:
    """Return the family that a config names, opened on it.

    Raises:
        UnknownArchitectureError: Lists the known ones.
        UnsupportedConfigError: A known family with a setting that is not built.
    """
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        reason = why_not_built(str(model_type))
        told = "" if reason is None else f", for {reason}"
        raise UnknownArchitectureError(
            f"model_type {model_type!r} has no exporter{told}; known: {', '.join(sorted(ARCHITECTURES))}. "
            "docs/add-a-model.md says how to add one."
        )
    module, name = ARCHITECTURES[str(model_type)].split(":")
    family = getattr(importlib.import_module(module), name)(config)
    if not isinstance(family, Family):
        raise TypeError(f"{ARCHITECTURES[str(model_type)]} is not a Family")
    return family
