"""Tiny LLaVA checkpoints with Phi's decoder, as in TinyLLaVA, Mipha and Bunny."""

from __future__ import annotations

from pathlib import Path

from checkpoints import llava_config, save_llava
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "siglip-half-a-head-turns": _config("siglip", num_attention_heads=3, num_key_value_heads=3, hidden_size=48),
        "clip-a-quarter-turns-shared-keys": _config(
            "clip",
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=24,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 700.0, "partial_rotary_factor": 0.25},
        ),
    }


def _config(tower: str, **text: object) -> Config:
    config = llava_config(tower, "phi", tie_word_embeddings=False)
    config["text_config"] |= {"tie_word_embeddings": False, **text}
    return config


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32; images are padded where the tower is CLIP's."""
    pads = config["vision_config"]["model_type"] == "clip_vision_model"
    save_llava(folder, config, _shapes(config["text_config"]), pads=pads)


def _shapes(text: Config) -> Shapes:
    width, inner, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    head = text.get("head_dim", width // heads)
    shapes: Shapes = {"embed_tokens.weight": (text["vocab_size"], width), **norm_shapes(width, "final_layernorm")}
    for layer in (f"layers.{number}." for number in range(text["num_hidden_layers"])):
        for name, rows in (("q", heads), ("k", text["num_key_value_heads"]), ("v", text["num_key_value_heads"])):
            shapes |= linear_shapes(f"{layer}self_attn.{name}_proj", rows * head, width)
        shapes |= linear_shapes(f"{layer}self_attn.dense", width, heads * head)
        shapes |= linear_shapes(f"{layer}mlp.fc1", inner, width) | linear_shapes(f"{layer}mlp.fc2", width, inner)
        shapes |= norm_shapes(width, f"{layer}input_layernorm")
    return shapes
