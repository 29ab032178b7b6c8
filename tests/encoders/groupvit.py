"""GroupViT: `groupvit`."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import encoder_files as files

TEXT = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2}
WORDS = {"vocab_size": 514, "eos_token_id": 513, "max_position_embeddings": 48}
VISION = {"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5}
LEAST_COSINE = 0.95
"""Of int8: each patch of nine goes to one group alone, and random weights have hardly a favourite."""
REFUSED = [
    ({"vision_config": {"num_output_groups": [6, 3, 3]}}, r"num_output_groups \[6, 3, 3\]; built are as many of each"),
    ({"vision_config": {"depths": [1, 1]}}, r"depths \[1, 1\]"),
    ({"vision_config": {"hidden_act": "mish"}}, "'mish'"),
]


def geometries() -> list[files.Config]:
    """Return one of three stages, the last without groups of its own, and one of two with another epsilon."""
    staged = {"depths": [1, 2, 1], "num_group_tokens": [7, 3, 0], "num_output_groups": [7, 3, 3]}
    first = {"projection_dim": 20, "projection_intermediate_dim": 28, "text_config": TEXT | WORDS}
    first["vision_config"] = VISION | staged | {"image_size": 36, "patch_size": 12}
    staged = {"depths": [1, 1], "num_group_tokens": [6, 0], "num_output_groups": [4, 4], "assign_mlp_ratio": [1.5, 3]}
    odd = {"image_size": 50, "patch_size": 8, "assign_eps": 0.25, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-3}
    second = {"projection_dim": 44, "projection_intermediate_dim": 60, "vision_config": VISION | staged | odd}
    second["text_config"] = TEXT | WORDS | {"eos_token_id": 2, "hidden_act": "gelu"}
    return [{"model_type": "groupvit", "architectures": ["GroupViTModel"], **each} for each in (first, second)]


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a crop and CLIP's tokenizer."""
    files.save_images(folder, "CLIPImageProcessor", **files.cropped(config["vision_config"]["image_size"]))
    checkpoints.save_clip_tokenizer(folder, config["text_config"]["max_position_embeddings"])
