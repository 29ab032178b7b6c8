"""Tiny Qwen2-VL checkpoints: layer norms, no windows; the rest is Qwen2.5-VL's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import save_model
from family_qwen2_5_vl import config as qwen2_5_config
from family_qwen2_5_vl import save_beside_weights, still_processor, text_shapes
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    sections = {"rope_type": "default", "rope_theta": 700.0, "mrope_section": [1, 5, 2]}
    return {
        "three-heads-tied": _config(),
        "untied-one-head": _config(
            {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 64, "rope_parameters": sections},
            {"embed_dim": 24, "num_heads": 1, "mlp_ratio": 3, "depth": 2, "patch_size": 8, "hidden_size": 64},
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    whole = qwen2_5_config({**(text or {}), "model_type": "qwen2_vl_text"}, **top)
    sizes = {"model_type": "qwen2_vl_vision", "depth": 3, "embed_dim": 48, "num_heads": 3, "mlp_ratio": 2}
    tower = {**sizes, "patch_size": 4, "hidden_size": 48, **(vision or {})}
    return {
        **whole,
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "vision_config": tower,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    save_beside_weights(folder, config, "Qwen2VLProcessor")


def processor(folder: Path) -> Any:
    """Return transformers' processor, without the part for videos, which wants torchvision."""
    from transformers import Qwen2VLProcessor

    return still_processor(Qwen2VLProcessor, folder)


def _shapes(config: Config) -> Shapes:
    vision, shapes = config["vision_config"], text_shapes(config)
    width, patch = vision["embed_dim"], vision["patch_size"]
    shapes["visual.patch_embed.proj.weight"] = (width, 3, 2, patch, patch)
    for block in (f"visual.blocks.{number}." for number in range(vision["depth"])):
        shapes |= linear_shapes(f"{block}attn.qkv", 3 * width, width) | linear_shapes(f"{block}attn.proj", width, width)
        inner = width * vision["mlp_ratio"]
        shapes |= linear_shapes(f"{block}mlp.fc1", inner, width) | linear_shapes(f"{block}mlp.fc2", width, inner)
        shapes |= norm_shapes(width, f"{block}norm1", f"{block}norm2")
    shapes |= norm_shapes(width, "visual.merger.ln_q") | linear_shapes("visual.merger.mlp.0", 4 * width, 4 * width)
    return shapes | linear_shapes("visual.merger.mlp.2", vision["hidden_size"], 4 * width)
