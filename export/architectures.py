"""Which class exports which `model_type`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from bundle.errors import UnknownArchitectureError
from export.config import Raw
from export.family import Family
from export.known_models import why_not_built

ARCHITECTURES: Mapping[str, str] = {
    "blip": "export.models.blip:Blip",
    "git": "export.models.git:Git",
    "blip-2": "export.models.blip_2:Blip2",
    "aimv2": "export.models.aimv2:Aimv2",
    "aimv2_vision_model": "export.models.aimv2:Aimv2Vision",
    "aki": "export.models.aki:Aki",
    "aria": "export.models.aria:Aria",
    "clip": "export.models.clip:Clip",
    "dinov2": "export.models.dinov2:Dinov2",
    "dinov2_with_registers": "export.models.dinov2:Dinov2",
    "dinov3_vit": "export.models.dinov3_vit:Dinov3Vit",
    "embedding_gemma2": "export.models.embedding_gemma2:EmbeddingGemma2",
    "florence2": "export.models.florence2:Florence2",
    "gemma3": "export.models.gemma3:Gemma3",
    "gemma4": "export.models.gemma4:Gemma4",
    "glm_ocr": "export.models.glm_ocr:GlmOcr",
    "got_ocr2": "export.models.got_ocr2:GotOcr2",
    "groupvit": "export.models.groupvit:GroupVit",
    "granite4_vision": "export.models.granite4_vision:Granite4Vision",
    "granite_docling": "export.models.granite_docling:GraniteDocling",
    "deepseek_vl": "export.models.deepseek_vl:DeepSeekVL",
    "deepseek_vl_hybrid": "export.models.deepseek_vl_hybrid:DeepSeekVLHybrid",
    "fast_vlm": "export.models.fast_vlm:FastVLM",
    "hunyuan_vl": "export.models.hunyuan_vl:HunYuanVL",
    "idefics2": "export.models.idefics2:Idefics2",
    "align": "export.models.align:Align",
    "all_in_one": "export.models.all_in_one:AllInOne",
    "altclip": "export.models.altclip:AltClip",
    "bert": "export.models.bert:BertReranker",
    "bridgetower": "export.models.bridgetower:BridgeTower",
    "chinese_clip": "export.models.chinese_clip:ChineseClip",
    "clip_fdt": "export.models.clip_fdt:ClipFdt",
    "clip_mode": "export.models.clip_mode:ClipMode",
    "clip_up": "export.models.clip_up:ClipUp",
    "cloc": "export.models.cloc:Cloc",
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
    "internvl_chat": "export.models.internvl_chat:open_authors_layout",
    "janus": "export.models.janus:Janus",
    "lfm2_vl": "export.models.lfm2_vl:Lfm2VL",
    "lighton_ocr": "export.models.lighton_ocr:LightOnOcr",
    "lfm3_vl": "export.models.lfm3_vl:Lfm3VL",
    "limoe": "export.models.limoe:Limoe",
    "llava": "export.models.llava:open_llava",
    "llava_adem": "export.models.llava_adem:LlavaADEM",
    "llava_mof": "export.models.llava_mof:LlavaMoF",
    "llm2clip": "export.models.llm2clip:Llm2Clip",
    "mm1": "export.models.mm1:MM1",
    "maple": "export.models.maple:Maple",
    "mobileclip": "export.models.mobileclip:MobileClip",
    "mistral3": "export.models.mistral3:Mistral3",
    "mllama": "export.models.mllama:Mllama",
    "llava_next": "export.models.llava_next:LlavaNext",
    "llava_onevision": "export.models.llava_onevision:LlavaOnevision",
    "llava_vlora": "export.models.llava_vlora:LlavaVLoRA",
    "jina_embeddings_v4": "export.models.jina_embeddings_v4:JinaEmbeddingsV4",
    "kosmos-2": "export.models.kosmos2:Kosmos2",
    "ovis2": "export.models.ovis2:Ovis2",
    "minicpmv4_6": "export.models.minicpmv4_6:MiniCPMV46",
    "modernbert": "export.models.modernbert:ModernBertReranker",
    "modernvbert": "export.models.modernvbert:ModernVBert",
    "metaclip_2": "export.models.metaclip_2:MetaClip2",
    "open_clip": "export.models.open_clip:OpenClip",
    "paddleocr_vl": "export.models.paddleocr_vl:PaddleOCRVL",
    "paligemma": "export.models.paligemma:PaliGemma",
    "perception_lm": "export.models.perception_lm:PerceptionLM",
    "pointsv1.5_chat": "export.models.points:Points",
    "qianfan_ocr": "export.models.qianfan_ocr:QianfanOCR",
    "qwen2_vl": "export.models.qwen2_vl:Qwen2VL",
    "qwen2_5_vl": "export.models.qwen2_5_vl:Qwen25VL",
    "qwen3_5": "export.models.qwen3_5:Qwen35",
    "qwen3_vl": "export.models.qwen3_vl:Qwen3VL",
    "roberta": "export.models.xlm_roberta:RobertaReranker",
    "siglip": "export.models.siglip:Siglip",
    "siglip2": "export.models.siglip2:Siglip2",
    "texthawk": "export.models.texthawk:TextHawk",
    "tipsv2": "export.models.tipsv2:Tipsv2",
    "vipllava": "export.models.vipllava:VipLlava",
    "unival": "export.models.unival:UnIVAL",
    "vit": "export.models.vit:Vit",
    "video_llama_3": "export.models.video_llama_3:VideoLlama3",
    "vilt": "export.models.vilt:Vilt",
    "smolvlm": "export.models.idefics3:Idefics3",
    "xlm-roberta": "export.models.xlm_roberta:XlmRobertaReranker",
    "vision-encoder-decoder": "export.models.vision_encoder_decoder:VisionEncoderDecoder",
    "vision-text-dual-encoder": "export.models.vision_text_dual_encoder:VisionTextDualEncoder",
}
"""`model_type` of a config to "module:Class", or to a function that chooses one."""
MADE_OF_OTHERS: Mapping[str, str] = {"JinaEmbeddingsV4Model": "jina_embeddings_v4"}
"""The key in `ARCHITECTURES` of checkpoints whose config has the `model_type` of the model that they were made of, by
the class that it names in `architectures`."""


def load_family(config: Raw) -> Family:
    """Return the family that a config names, opened on it.

    Raises:
        UnknownArchitectureError: Lists the known ones.
        UnsupportedConfigError: A known family with a setting that is not built.
    """
    named = config.get("architectures") or ()
    model_type = next((MADE_OF_OTHERS[name] for name in named if name in MADE_OF_OTHERS), config.get("model_type"))
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
