"""Chinese-CLIP: `chinese_clip`."""

from __future__ import annotations

from pathlib import Path

import encoder_files as files

TEXT = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2}
VISION = {"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 3}
REFUSED = [
    ({"text_config": {"hidden_act": "mish"}}, "'mish'"),
    ({"text_config": {"num_attention_heads": 5}}, "hidden_size 36 is not a multiple of num_attention_heads 5"),
    ({"text_config": {"position_embedding_type": "relative_key"}}, "position_embedding_type is 'relative_key'"),
    ({"vision_config": {"num_channels": 4}}, "num_channels is 4"),
]


def geometries() -> list[files.Config]:
    """Return two odd ones; the second has a patch that does not divide the image, and settings of its own."""
    words = {"vocab_size": len(files.BERT_WORDS) + 3, "max_position_embeddings": 48}
    first = {
        "projection_dim": 20,
        "text_config": TEXT | words,
        "vision_config": VISION | {"image_size": 36, "patch_size": 12},
    }
    text = {**TEXT, **words, "type_vocab_size": 3, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5}
    vision = {**VISION, "image_size": 50, "patch_size": 8, "hidden_act": "gelu"}
    second = {"projection_dim": 44, "text_config": text, "vision_config": vision}
    return [{"model_type": "chinese_clip", "architectures": ["ChineseCLIPModel"], **each} for each in (first, second)]


def save_processor(folder: Path, config: files.Config) -> None:
    """Write images stretched to a square, as published checkpoints have them."""
    side = config["vision_config"]["image_size"]
    files.save_images(folder, "ChineseCLIPImageProcessor", **files.stretched(side))
    files.save_bert_tokenizer(folder, 48, processor_class="ChineseCLIPProcessor")
