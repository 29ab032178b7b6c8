"""Tiny LLaVA checkpoints with Mistral's decoder, without a window and with one shorter than prompts."""

from __future__ import annotations

from pathlib import Path

from checkpoints import llava_config, save_llava
from weight_shapes import Config


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "siglip-no-window": _config("siglip", head_dim=24, num_attention_heads=3, sliding_window=None),
        "clip-window-shared-keys": _config(
            "clip", num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=11
        ),
    }


def _config(tower: str, **text: object) -> Config:
    config = llava_config(tower, "mistral", tie_word_embeddings=False)
    config["text_config"] |= {"tie_word_embeddings": False, **text}
    return config


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_llava(folder, config)
