"""MetaCLIP 2: `metaclip_2`."""

from __future__ import annotations

from pathlib import Path

import encoder_files as files

TEXT = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2, "eos_token_id": 2}
VISION = {"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 3}
REFUSED = [
    ({"text_config": {"eos_token_id": [2, 3]}}, r"text_config.eos_token_id is \[2, 3\]"),
    ({"vision_config": {"image_size": [36, 48]}}, r"image_size is \[36, 48\]; only square"),
]


def geometries() -> list[files.Config]:
    """Return two odd ones: of published sizes' kind, and of other activations."""
    words = {"vocab_size": len(files.UNIGRAM_PIECES) + 1, "max_position_embeddings": 40}
    first = {
        "projection_dim": 20,
        "text_config": TEXT | words,
        "vision_config": VISION | {"image_size": 36, "patch_size": 12},
    }
    text = {**TEXT, **words, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
    vision = {**VISION, "image_size": 50, "patch_size": 8, "hidden_act": "gelu"}
    second = {"projection_dim": 44, "text_config": text, "vision_config": vision}
    return [{"model_type": "metaclip_2", "architectures": ["MetaClip2Model"], **each} for each in (first, second)]


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a crop and XLM-R's tokenizer, as published checkpoints have them."""
    files.save_images(folder, "CLIPImageProcessor", **files.cropped(config["vision_config"]["image_size"]))
    files.save_unigram_tokenizer(folder, 40, processor_class="CLIPProcessor")
