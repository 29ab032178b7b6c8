"""AIMv2, tuned to texts: `aimv2`."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import encoder_files as files

TEXT = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2}
VISION = {"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 3}
WORDS = {"vocab_size": 514, "eos_token_id": 513, "max_position_embeddings": 48}
REFUSED = [
    ({"vision_config": {"use_head": False}}, "use_head is false: without the head that pools patches"),
    ({"vision_config": {"is_native": True}}, "is_native is true: positions of images of any shape"),
    ({"text_config": {"eos_token_id": [513, 2]}}, r"text_config.eos_token_id is \[513, 2\]"),
    ({"vision_config": {"hidden_act": "mish"}}, "'mish'"),
]


def geometries() -> list[files.Config]:
    """Return one of published switches, and one with every bias and another epsilon and cap of scores."""
    first = {"projection_dim": 20, "vision_config": VISION | {"image_size": 36, "patch_size": 12}}
    first["text_config"] = TEXT | WORDS
    biased = {"qkv_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3, "hidden_act": "gelu"}
    second = {"projection_dim": 44, "vision_config": VISION | biased | {"image_size": 50, "patch_size": 8}}
    second |= {"text_config": TEXT | WORDS | biased, "max_logit_scale": 1.5}
    return [{"model_type": "aimv2", "architectures": ["Aimv2Model"], **each} for each in (first, second)]


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a crop and CLIP's tokenizer, as the published checkpoint has them."""
    files.save_images(folder, "CLIPImageProcessor", **files.cropped(config["vision_config"]["image_size"]))
    checkpoints.save_clip_tokenizer(folder, config["text_config"]["max_position_embeddings"])
