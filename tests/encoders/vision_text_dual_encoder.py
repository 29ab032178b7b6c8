"""Towers brought together by projections: `vision-text-dual-encoder`."""

from __future__ import annotations

from pathlib import Path

import encoder_files as files

TEXT = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2}
VISION = {"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 3}
REFUSED = [
    ({"text_config": {"model_type": "distilbert"}}, "text_config.model_type is 'distilbert'; built are bert"),
    ({"vision_config": {"model_type": "beit"}}, "vision_config.model_type is 'beit'; built are clip_vision_model"),
    ({"vision_config": {"pooler_act": "relu"}}, "pooler_act is 'relu'"),
]


def geometries() -> list[files.Config]:
    """Return two odd ones: a ViT with a BERT, and CLIP's tower with an XLM-R."""
    words = {"model_type": "bert", "vocab_size": len(files.BERT_WORDS) + 3, "max_position_embeddings": 48}
    vit = {**VISION, "model_type": "vit", "image_size": 36, "patch_size": 12, "qkv_bias": False}
    first = {"projection_dim": 20, "text_config": TEXT | words, "vision_config": vit}
    words = {"model_type": "xlm-roberta", "vocab_size": len(files.UNIGRAM_PIECES) + 1, "max_position_embeddings": 42}
    words |= {"pad_token_id": 1, "type_vocab_size": 1}
    clip = {**VISION, "model_type": "clip_vision_model", "image_size": 50, "patch_size": 8}
    second = {"projection_dim": 44, "text_config": TEXT | words, "vision_config": clip}
    names = {"model_type": "vision-text-dual-encoder", "architectures": ["VisionTextDualEncoderModel"]}
    return [names | each for each in (first, second)]


def save_processor(folder: Path, config: files.Config) -> None:
    """Write the processor of the towers."""
    side = config["vision_config"]["image_size"]
    if config["vision_config"]["model_type"] == "vit":
        files.save_images(folder, "ViTImageProcessor", size=files.square(side))
        files.save_bert_tokenizer(folder, 48, processor_class="VisionTextDualEncoderProcessor")
    else:
        files.save_images(folder, "CLIPImageProcessor", **files.cropped(side))
        files.save_unigram_tokenizer(folder, 40, processor_class="VisionTextDualEncoderProcessor")
