"""Tiny LLaVA checkpoints with Qwen3's decoder: norms of queries and keys."""

from __future__ import annotations

from pathlib import Path

from checkpoints import llava_config, save_llava
from weight_shapes import Config, Shapes, decoder_shapes


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "siglip-tied-wide-heads": _config("siglip", head_dim=24, num_attention_heads=3),
        "clip-untied-biases": _config("clip", is_tied=False, head_dim=16, attention_bias=True),
    }


def _config(tower: str, *, is_tied: bool = True, **text: object) -> Config:
    config = llava_config(tower, "qwen3", tie_word_embeddings=is_tied)
    config["text_config"] |= {"tie_word_embeddings": is_tied, **text}
    return config


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_llava(folder, config, _shapes(config["text_config"]))


def _shapes(text: Config) -> Shapes:
    shapes = decoder_shapes(text, "")
    for number in range(text["num_hidden_layers"]):
        shapes |= {f"layers.{number}.self_attn.{name}_norm.weight": (text["head_dim"],) for name in "qk"}
    return shapes
