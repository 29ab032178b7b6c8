"""Which class builds which decoder, by the `model_type` of a text config."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from export.config import Raw
from export.decoders.decoder import Decoder

DECODERS: Mapping[str, str] = {
    "bart": "export.decoders.bart:Bart",
    "blip_text_model": "export.decoders.blip_text_model:BlipText",
    "aria_text": "export.decoders.aria_text:AriaText",
    "deepseek_ocr2_text": "export.decoders.deepseek_moe:DeepSeekMoe",
    "deepseek_v2": "export.decoders.deepseek_moe:DeepSeekMoe",
    "gemma": "export.decoders.gemma:Gemma",
    "gemma2": "export.decoders.gemma2:Gemma2",
    "gemma3_text": "export.decoders.gemma3_text:Gemma3Text",
    "hunyuan_vl_text": "export.decoders.hunyuan_vl_text:HunYuanVLText",
    "gemma3n_text": "export.decoders.gemma3n_text:Gemma3nText",
    "gemma4_text": "export.decoders.gemma4_text:Gemma4Text",
    "internlm2_ve": "export.decoders.internlm2_ve:InternLM2VE",
    "git_text": "export.decoders.git:GitText",
    "glm_ocr_text": "export.decoders.glm_ocr_text:GlmOcrText",
    "lfm2": "export.decoders.lfm2:Lfm2",
    "lfm3": "export.decoders.lfm3:Lfm3",
    "granite": "export.decoders.granite:Granite",
    "granite4_vision_text": "export.decoders.granite:Granite",
    "granite_docling_text": "export.decoders.granite:Granite",
    "kosmos_2_text_model": "export.decoders.kosmos_2_text_model:Kosmos2Text",
    "llama": "export.decoders.llama:Llama",
    "llama_adem": "export.decoders.llama_adem:LlamaADEM",
    "llama_mote": "export.decoders.llama_mote:LlamaMote",
    "llama_vlora": "export.decoders.llama_vlora:LlamaVLoRA",
    "ministral3": "export.decoders.ministral3:Ministral3",
    "mbart": "export.decoders.mbart:MBart",
    "mistral": "export.decoders.mistral:Mistral",
    "moondream_text": "export.decoders.moondream_text:MoondreamText",
    "mllama_text_model": "export.decoders.mllama_text:MllamaText",
    "molmo2_text": "export.decoders.molmo2_text:Molmo2Text",
    "opt": "export.decoders.opt:OPT",
    "paddleocr_vl_text": "export.decoders.paddleocr_vl_text:PaddleOCRText",
    "persimmon": "export.decoders.persimmon:Persimmon",
    "phi": "export.decoders.phi:Phi",
    "qwen2": "export.decoders.qwen2:Qwen2",
    "qwen2_5_vl_text": "export.decoders.qwen2_5_vl_text:Qwen25VLText",
    "qwen2_vl_text": "export.decoders.qwen2_5_vl_text:Qwen25VLText",
    "qwen3": "export.decoders.qwen3:Qwen3",
    "qwen3_5_text": "export.decoders.qwen3_5_text:Qwen35Text",
    "qwen3_vl_text": "export.decoders.qwen3_vl_text:Qwen3VLText",
    "stablelm": "export.decoders.stablelm:StableLM",
    "unlimited_ocr_text": "export.decoders.unlimited_ocr_text:UnlimitedOcrText",
    "unival_text": "export.decoders.unival:UnIVALText",
    "t5gemma2_decoder": "export.decoders.t5gemma2_decoder:T5Gemma2Decoder",
    "trocr": "export.decoders.trocr:TrOCR",
}
"""`model_type` of a text config to "module:Class"."""


def load_decoder(raw: Raw) -> Decoder:
    """Return the decoder that a text config describes.

    Raises:
        UnsupportedConfigError: Of a kind that is not built, with the known ones; or a setting that is not.
    """
    kind = raw.get("model_type", "llama")
    if kind not in DECODERS:
        raise UnsupportedConfigError(
            f"text_config.model_type {kind!r}: the decoders built are {', '.join(sorted(DECODERS))}. "
            "docs/add-a-model.md says how to add one."
        )
    module, name = DECODERS[str(kind)].split(":")
    decoder: Decoder = getattr(importlib.import_module(module), name).read(raw)
    return decoder
