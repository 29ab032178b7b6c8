"""Tiny LLaVA-NeXT and LLaVA checkpoints with Granite's decoder, as in Granite Vision: factors, two layers read."""

from __future__ import annotations

from pathlib import Path

from checkpoints import llava_config, save_llava
from family_llava_next import any_resolution
from family_llava_next import save as save_llava_next
from weight_shapes import Config, decoder_shapes


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them.

    What logits are divided by is 1: transformers' LLaVA leaves that out, and the order of tokens is the same.
    """
    factors = {"embedding_multiplier": 0.6, "attention_multiplier": 0.3, "residual_multiplier": 0.8}
    grouped = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False}
    towers = {"vision_feature_select_strategy": "full", "vision_feature_layer": [-3, -1]}
    plain = llava_config("clip", "granite", tie_word_embeddings=False)
    plain["text_config"] |= {**grouped, "hidden_size": 64, "attention_bias": True, "mlp_bias": True}
    return {
        "tiles-two-layers-of-siglip": any_resolution(
            "siglip", "granite", {**grouped, **factors}, tie_word_embeddings=False, **towers
        ),
        "one-image-of-clip-biases-factors-left-out": plain,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    if config["model_type"] == "llava_next":
        save_llava_next(folder, config)
    else:
        save_llava(folder, config, decoder_shapes({**config["text_config"], "model_type": "llama"}, ""))
