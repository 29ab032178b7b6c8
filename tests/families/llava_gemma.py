"""Tiny LLaVA checkpoints with Gemma's decoder: tied and not, heads wider than the width gives each."""

from __future__ import annotations

from pathlib import Path

from checkpoints import llava_config, save_llava
from safetensors.numpy import load_file, save_file
from weight_shapes import Config


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "siglip-tied-wide-heads": _config(
            "siglip", head_dim=24, num_attention_heads=3, hidden_size=24, num_hidden_layers=4, hidden_act="gelu"
        ),
        "clip-untied-biases": _config("clip", is_tied=False, head_dim=16, attention_bias=True),
    }


def _config(tower: str, *, is_tied: bool = True, **text: object) -> Config:
    config = llava_config(tower, "gemma", tie_word_embeddings=is_tied)
    config["text_config"] |= {"tie_word_embeddings": is_tied, "num_hidden_layers": 3, **text}
    return config


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, its norms around 0: they multiply by 1 + w."""
    save_llava(folder, config)
    path = folder / "model.safetensors"
    weights = {
        name: weight - 1 if name.startswith("language_model.") and name.endswith("norm.weight") else weight
        for name, weight in load_file(path).items()
    }
    save_file(weights, path, {"format": "pt"})
