"""Which class exports which `model_type`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from bundle.errors import UnknownArchitectureError, UnsupportedConfigError
from export.config import Raw
from export.family import Family
from export.known_models import why_not_built

ARCHITECTURES: Mapping[str, str] = {
    "aimv2": "export.models.aimv2:Aimv2",
    "aimv2_vision_model": "export.models.aimv2:Aimv2Vision",
    "aki": "export.models.aki:Aki",
    "align": "export.models.align:Align",
    "all_in_one": "export.models.all_in_one:AllInOne",
    "altclip": "export.models.altclip:AltClip",
    "aria": "export.models.aria:Aria",
    "bert": "export.models.bert:BertReranker",
    "blip": "export.models.blip:Blip",
    "blip-2": "export.models.blip_2:Blip2",
    "bridgetower": "export.models.bridgetower:BridgeTower",
    "bunny-llama": "export.models.llava_authors:open_authors",
    "bunny-phi": "export.models.llava_authors:open_authors",
    "bunny-qwen2": "export.models.llava_authors:open_authors",
    "chinese_clip": "export.models.chinese_clip:ChineseClip",
    "clip": "export.models.clip:Clip",
    "clip_fdt": "export.models.clip_fdt:ClipFdt",
    "clip_mode": "export.models.clip_mode:ClipMode",
    "clip_up": "export.models.clip_up:ClipUp",
    "clipseg": "export.models.clipseg:ClipSeg",
    "cloc": "export.models.cloc:Cloc",
    "colmodernvbert": "export.models.colmodernvbert:ColModernVBert",
    "colpali": "export.models.colpali:ColPali",
    "colqwen2": "export.models.colqwen2:ColQwen2",
    "deepseek_ocr2": "export.models.deepseek_ocr2:DeepSeekOcr2",
    "deepseek_vl": "export.models.deepseek_vl:DeepSeekVL",
    "deepseek_vl_hybrid": "export.models.deepseek_vl_hybrid:DeepSeekVLHybrid",
    "deepseek_vl_v2": "export.models.deepseek_vl_v2:open_authors_layout",
    "dinov2": "export.models.dinov2:Dinov2",
    "dinov2_with_registers": "export.models.dinov2:Dinov2",
    "dinov3_vit": "export.models.dinov3_vit:Dinov3Vit",
    "dots_ocr": "export.models.dots_ocr:DotsOcr",
    "florence2": "export.models.florence2_authors:open_florence2",
    "eve": "export.models.eve:Eve",
    "fuyu": "export.models.fuyu:Fuyu",
    "embedding_gemma2": "export.models.embedding_gemma2:EmbeddingGemma2",
    "fast_vlm": "export.models.fast_vlm:FastVLM",
    "filip": "export.models.filip:Filip",
    "flava": "export.models.flava:Flava",
    "freeze_align": "export.models.freeze_align:FreezeAlign",
    "gemma3": "export.models.gemma3:Gemma3",
    "gemma3n": "export.models.gemma3n:Gemma3n",
    "gemma4": "export.models.gemma4:Gemma4",
    "git": "export.models.git:Git",
    "glm_ocr": "export.models.glm_ocr:GlmOcr",
    "got_ocr2": "export.models.got_ocr2:GotOcr2",
    "groupvit": "export.models.groupvit:GroupVit",
    "granite4_vision": "export.models.granite4_vision:Granite4Vision",
    "granite_docling": "export.models.granite_docling:GraniteDocling",
    "hunyuan_vl": "export.models.hunyuan_vl:HunYuanVL",
    "idefics2": "export.models.idefics2:Idefics2",
    "idefics3": "export.models.idefics3:Idefics3",
    "instructblip": "export.models.instructblip:InstructBlip",
    "internvl": "export.models.internvl:InternVL",
    "internvl_chat": "export.models.internvl_chat:open_authors_layout",
    "janus": "export.models.janus:Janus",
    "jina_embeddings_v4": "export.models.jina_embeddings_v4:JinaEmbeddingsV4",
    "kosmos-2": "export.models.kosmos2:Kosmos2",
    "lfm2_vl": "export.models.lfm2_vl:Lfm2VL",
    "lfm3_vl": "export.models.lfm3_vl:Lfm3VL",
    "lighton_ocr": "export.models.lighton_ocr:LightOnOcr",
    "limoe": "export.models.limoe:Limoe",
    "llava": "export.models.llava:open_llava",
    "llava_adem": "export.models.llava_adem:LlavaADEM",
    "llava_llama": "export.models.llava_authors:open_authors",
    "llava_mistral": "export.models.llava_authors:open_authors",
    "llava_mof": "export.models.llava_mof:LlavaMoF",
    "llava_next": "export.models.llava_next:LlavaNext",
    "llava_next_video": "export.models.llava_next_video:LlavaNextVideo",
    "llava_onevision": "export.models.llava_onevision:LlavaOnevision",
    "llava_qwen": "export.models.llava_authors:open_authors",
    "llava_qwen2": "export.models.llava_authors:open_authors",
    "llava_vlora": "export.models.llava_vlora:LlavaVLoRA",
    "ovis2": "export.models.ovis2:Ovis2",
    "minicpm_ocr": "export.models.minicpm_ocr:MiniCPMOcr",
    "llm2clip": "export.models.llm2clip:Llm2Clip",
    "maple": "export.models.maple:Maple",
    "metaclip_2": "export.models.metaclip_2:MetaClip2",
    "minicpmv4_6": "export.models.minicpmv4_6:MiniCPMV46",
    "mistral3": "export.models.mistral3:Mistral3",
    "mllama": "export.models.mllama:Mllama",
    "mm1": "export.models.mm1:MM1",
    "mobileclip": "export.models.mobileclip:MobileClip",
    "modernbert": "export.models.modernbert:ModernBertReranker",
    "modernvbert": "export.models.modernvbert:ModernVBert",
    "molmo2": "export.models.molmo2:Molmo2",
    "moondream1": "export.models.moondream1:Moondream",
    "nanovlm": "export.models.nanovlm:NanoVLM",
    "open_clip": "export.models.open_clip:OpenClip",
    "paddleocr_vl": "export.models.paddleocr_vl:PaddleOCRVL",
    "paligemma": "export.models.paligemma:PaliGemma",
    "perception_lm": "export.models.perception_lm:PerceptionLM",
    "pointsv1.5_chat": "export.models.points:Points",
    "qianfan_ocr": "export.models.qianfan_ocr:QianfanOCR",
    "qwen2_5_vl": "export.models.qwen2_5_vl:Qwen25VL",
    "qwen2_vl": "export.models.qwen2_vl:Qwen2VL",
    "qwen3_5": "export.models.qwen3_5:Qwen35",
    "qwen3_vl": "export.models.qwen3_vl:Qwen3VL",
    "roberta": "export.models.xlm_roberta:RobertaReranker",
    "siglip": "export.models.siglip:Siglip",
    "siglip2": "export.models.siglip2:Siglip2",
    "smolvlm": "export.models.idefics3:Idefics3",
    "solo": "export.models.solo:Solo",
    "t5gemma2": "export.models.t5gemma2:T5Gemma2",
    "texthawk": "export.models.texthawk:TextHawk",
    "tiny_llava": "export.models.llava_authors:open_authors",
    "tiny_llava_phi": "export.models.llava_authors:open_authors",
    "tinyllava": "export.models.llava_authors:open_authors",
    "tipsv2": "export.models.tipsv2:Tipsv2",
    "unival": "export.models.unival:UnIVAL",
    "unlimited_ocr": "export.models.unlimited_ocr:UnlimitedOcr",
    "video_llama_3": "export.models.video_llama_3:VideoLlama3",
    "vilt": "export.models.vilt:Vilt",
    "vipllava": "export.models.vipllava:VipLlava",
    "vision-encoder-decoder": "export.models.vision_encoder_decoder:VisionEncoderDecoder",
    "vision-text-dual-encoder": "export.models.vision_text_dual_encoder:VisionTextDualEncoder",
    "vit": "export.models.vit:Vit",
    "xlm-roberta": "export.models.xlm_roberta:XlmRobertaReranker",
}
"""`model_type` of a config to "module:Class", or to a function that chooses one."""
MADE_OF_OTHERS: Mapping[str, tuple[str, str]] = {
    "JinaEmbeddingsV4Model": ("qwen2_5_vl", "jina_embeddings_v4"),
    "LlavaLlamaForCausalLM": ("llava", "llava_llama"),
    "LlavaMistralForCausalLM": ("llava", "llava_mistral"),
    "LlavaQwenForCausalLM": ("llava", "llava_qwen"),
    "SoloForCausalLM": ("mistral", "solo"),
}
"""By the class in `architectures`: the `model_type` that a config kept of what the model was made of, and the key in
`ARCHITECTURES`. A config of another `model_type` is what that says."""
_MISREAD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What reading a config ends in where a setting is of another kind than all published ones have."""


def load_family(config: Raw) -> Family:
    """Return the family that a config names, opened on it.

    Raises:
        UnknownArchitectureError: Lists the known ones.
        UnsupportedConfigError: A known family with a setting that is not built, or that is lacking or no number where
            one is wanted.
    """
    model_type = _kind(config)
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        reason = why_not_built(str(model_type))
        told = "" if reason is None else f", for {reason}"
        raise UnknownArchitectureError(
            f"model_type {model_type!r} has no exporter{told}; known: {', '.join(sorted(ARCHITECTURES))}. "
            "docs/add-a-model.md says how to add one."
        )
    module, name = ARCHITECTURES[model_type].split(":")
    opened = getattr(importlib.import_module(module), name)
    try:
        family = opened(config)
    except _MISREAD as error:
        raise UnsupportedConfigError(
            f"a setting of this {model_type} is lacking, or of a kind that is not expected "
            f"({type(error).__name__}: {error}); compare its config.json with a published one"
        ) from error
    if not isinstance(family, Family):
        raise TypeError(f"{ARCHITECTURES[model_type]} is not a Family")
    return family


def may_lack_its_tower(config: Raw) -> bool:
    """Return whether a config is of a code base that keeps towers apart, in the repository that the config names."""
    return ARCHITECTURES.get(str(_kind(config))) == ARCHITECTURES["llava_llama"]


def _kind(config: Raw) -> Any:
    """Return what a config is in `ARCHITECTURES`, if there."""
    model_type, named = config.get("model_type"), config.get("architectures")
    known = MADE_OF_OTHERS.keys() & {str(name) for name in named} if isinstance(named, list) else ()
    made = [MADE_OF_OTHERS[name] for name in sorted(known)]
    return next((key for kept, key in made if kept == model_type), model_type)
