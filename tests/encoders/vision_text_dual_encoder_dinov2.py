"""DINOv2 beside a text tower, at the size that its processor makes: `vision-text-dual-encoder`."""

from __future__ import annotations

from pathlib import Path

import encoder_files as files

TEXT = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2}
VISION = {"model_type": "dinov2", "hidden_size": 40, "num_attention_heads": 5, "num_hidden_layers": 2}
REFUSED = [
    ({"vision_config": {"qkv_bias": False}}, "qkv_bias is False"),
]


def geometries() -> list[files.Config]:
    """Return one at its own size without a token for hidden patches, and one whose positions are resampled."""
    bert = {"model_type": "bert", "vocab_size": len(files.BERT_WORDS) + 3, "max_position_embeddings": 48}
    own = {**VISION, "image_size": 36, "patch_size": 12, "use_mask_token": False, "mlp_ratio": 2}
    first = {"projection_dim": 20, "text_config": TEXT | bert, "vision_config": own}
    resampled = {**VISION, "image_size": 60, "patch_size": 10, "hidden_act": "relu"}
    second = {"projection_dim": 44, "text_config": TEXT | bert, "vision_config": resampled}
    names = {"model_type": "vision-text-dual-encoder", "architectures": ["VisionTextDualEncoderModel"]}
    return [names | each for each in (first, second)]


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a crop of 36 pixels, as many as it has or fewer."""
    files.save_images(folder, "BitImageProcessor", **files.cropped(36))
    files.save_bert_tokenizer(folder, 48, processor_class="VisionTextDualEncoderProcessor")
