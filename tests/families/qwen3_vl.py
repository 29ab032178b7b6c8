"""Tiny Qwen3-VL checkpoints: learned positions, deepstack, norms of queries and keys; the rest is Qwen2.5-VL's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import save_model
from family_qwen2_5_vl import config as qwen2_5_config
from family_qwen2_5_vl import save_beside_weights, still_processor
from qwen3_shapes import tower_shapes
from weight_shapes import Config, Shapes, decoder_shapes


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "two-deep-layers-tied": _config(),
        "untied-biases-one-deep-layer": _config(
            {"attention_bias": True, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2},
            {"deepstack_visual_indexes": [0], "num_position_embeddings": 9, "num_heads": 1, "patch_size": 8},
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    rope = {"rope_type": "default", "rope_theta": 900.0, "mrope_section": [6, 3, 3], "mrope_interleaved": True}
    words = {"model_type": "qwen3_vl_text", "head_dim": 24, "rope_parameters": rope, **(text or {})}
    sizes = {"model_type": "qwen3_vl_vision", "depth": 3, "hidden_size": 36, "num_heads": 3, "intermediate_size": 40}
    positions = {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]}
    return {
        **qwen2_5_config(words, **top),
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "vision_config": {**sizes, **positions, "patch_size": 4, "out_hidden_size": 48, **(vision or {})},
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    save_beside_weights(folder, config, "Qwen3VLProcessor", image_mean=[0.5] * 3, image_std=[0.5] * 3)


def processor(folder: Path) -> Any:
    """Return transformers' processor, without the part for videos, which wants torchvision."""
    from transformers import Qwen3VLProcessor

    return still_processor(Qwen3VLProcessor, folder)


def _shapes(config: Config) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    shapes = decoder_shapes({**text, "model_type": "llama"}, "model.language_model.")
    for number in range(text["num_hidden_layers"]):
        attention = f"model.language_model.layers.{number}.self_attn"
        shapes |= {f"{attention}.{name}_norm.weight": (text["head_dim"],) for name in "qk"}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    return shapes | tower_shapes(vision, "model.visual.")
