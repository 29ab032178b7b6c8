"""Tiny LLaVA checkpoints with Granite's decoder: factors of embeddings, scores and residuals."""

from __future__ import annotations

from pathlib import Path

from checkpoints import llava_config, save_llava
from weight_shapes import Config, decoder_shapes


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them.

    What logits are divided by is 1: transformers' LLaVA leaves that out, and the order of tokens is the same.
    """
    factors = {"embedding_multiplier": 0.6, "attention_multiplier": 0.3, "residual_multiplier": 0.8}
    return {
        "siglip-shared-keys": _config(
            "siglip", hidden_size=48, num_attention_heads=3, num_key_value_heads=1, **factors
        ),
        "clip-biases-factors-left-out": _config(
            "clip", num_attention_heads=4, num_key_value_heads=2, hidden_size=64, attention_bias=True, mlp_bias=True
        ),
    }


def _config(tower: str, **text: object) -> Config:
    config = llava_config(tower, "granite", tie_word_embeddings=False)
    config["text_config"] |= {"tie_word_embeddings": False, **text}
    return config


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_llava(folder, config, decoder_shapes({**config["text_config"], "model_type": "llama"}, ""))
