"""AltCLIP: `altclip`."""

from __future__ import annotations

from pathlib import Path

import encoder_files as files

TEXT = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2, "project_dim": 28}
VISION = {"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 3}
REFUSED = [
    ({"text_config": {"pad_token_id": None}}, "pad_token_id is null"),
    ({"text_config": {"is_decoder": True}}, "is_decoder is True"),
    ({"vision_config": {"patch_size": [12, 6]}}, r"patch_size is \[12, 6\]"),
]


def geometries() -> list[files.Config]:
    """Return two odd ones."""
    words = {"vocab_size": len(files.UNIGRAM_PIECES) + 1, "max_position_embeddings": 42}
    vision = VISION | {"image_size": 36, "patch_size": 12}
    first = {"projection_dim": 20, "text_config": TEXT | words, "vision_config": vision}
    text = {**TEXT, **words, "type_vocab_size": 2, "hidden_act": "relu", "layer_norm_eps": 1e-3}
    vision = {**VISION, "image_size": 50, "patch_size": 8, "hidden_act": "gelu"}
    second = {"text_config": text, "vision_config": vision}
    return [{"model_type": "altclip", "architectures": ["AltCLIPModel"], **each} for each in (first, second)]


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a crop and XLM-R's tokenizer, as published checkpoints have them."""
    files.save_images(folder, "CLIPImageProcessor", **files.cropped(config["vision_config"]["image_size"]))
    files.save_unigram_tokenizer(folder, 40, processor_class="AltCLIPProcessor")
