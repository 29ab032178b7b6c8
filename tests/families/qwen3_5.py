"""Tiny Qwen3.5 checkpoints: gated delta rules beside gated attention, heads that turn in part; images as Qwen3-VL's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import save_model
from family_qwen2_5_vl import config as qwen2_5_config
from family_qwen2_5_vl import save_beside_weights, still_processor
from qwen3_shapes import as_trained, gated_decoder_shapes, tower_shapes
from weight_shapes import Config, Shapes


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "three-values-a-key-tied": config(),
        "untied-biases-two-taps-attention-first": config(
            {
                "attention_bias": True,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "num_hidden_layers": 3,
                "intermediate_size": 88,
                "layer_types": ["full_attention", "linear_attention", "full_attention"],
                "linear_conv_kernel_dim": 2,
                "linear_num_key_heads": 3,
                "linear_num_value_heads": 3,
                "linear_key_head_dim": 20,
                "linear_value_head_dim": 12,
                "head_dim": 16,
                "rope_parameters": _rope([3, 2, 1], 0.75),
            },
            {"num_position_embeddings": 9, "num_heads": 1, "patch_size": 8},
            tie_word_embeddings=False,
        ),
    }


def _rope(sections: list[int], part: float) -> Config:
    return {
        "rope_type": "default",
        "rope_theta": 900.0,
        "mrope_section": sections,
        "mrope_interleaved": True,
        "partial_rotary_factor": part,
    }


def config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    """Return a tiny config; arguments override its parts."""
    words = {
        "model_type": "qwen3_5_text",
        "head_dim": 24,
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
        "linear_conv_kernel_dim": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 6,
        "linear_key_head_dim": 12,
        "linear_value_head_dim": 20,
        "rope_parameters": _rope([2, 1, 1], 1 / 3),
        "attn_output_gate": True,
        "mamba_ssm_dtype": "float32",
        **(text or {}),
    }
    sizes = {"model_type": "qwen3_5_vision", "depth": 2, "hidden_size": 36, "num_heads": 3, "intermediate_size": 40}
    sizes |= {"num_position_embeddings": 25, "patch_size": 4, "out_hidden_size": 48, "deepstack_visual_indexes": []}
    return {
        **qwen2_5_config(words, **top),
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "vision_config": {**sizes, **(vision or {})},
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, shapes(config))
    as_trained(folder / "model.safetensors")
    save_beside_weights(folder, config, "Qwen3VLProcessor", image_mean=[0.5] * 3, image_std=[0.5] * 3)


def processor(folder: Path) -> Any:
    """Return transformers' processor, without the part for videos, which wants torchvision."""
    from transformers import Qwen3VLProcessor

    return still_processor(Qwen3VLProcessor, folder)


def shapes(config: Config) -> Shapes:
    """Name every weight of a Qwen3.5."""
    text = config["text_config"]
    found = gated_decoder_shapes(text, "model.language_model.")
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    return found | tower_shapes(config["vision_config"], "model.visual.")
