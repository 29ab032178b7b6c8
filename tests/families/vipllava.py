"""Tiny ViP-LLaVA checkpoints: several layers of a CLIP tower beside one another, normed, and a Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import llava_config, save_llava, write_json
from weight_shapes import Config, norm_shapes


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "three-layers-older-key-wider-tower": _config(64, vision_feature_layers=[-3, 0, 1]),
        "one-layer-tied-wide-eps": _config(
            vision_feature_layer=-1, projector_layernorm_eps=0.1, projector_hidden_act="relu", tie_word_embeddings=True
        ),
    }


def _config(width: int = 32, **top: Any) -> Config:
    config = llava_config("clip", "llama", **top)
    config["vision_config"]["hidden_size"] = width
    left_out = {"vision_feature_select_strategy"} | (
        {"vision_feature_layer"} if "vision_feature_layers" in top else set()
    )
    named = {"architectures": ["VipLlavaForConditionalGeneration"], "model_type": "vipllava"}
    return {key: value for key, value in {**config, **named}.items() if key not in left_out}


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    layers = config.get("vision_feature_layers", config.get("vision_feature_layer"))
    llava = {"vision_feature_layer": layers, "vision_feature_select_strategy": "default"}
    num_layers = len(layers) if isinstance(layers, list) else 1
    norm = norm_shapes(num_layers * config["vision_config"]["hidden_size"], "multi_modal_projector.projector_layernorm")
    save_llava(folder, {**config, **llava}, more=norm)
    write_json(folder / "config.json", config)
