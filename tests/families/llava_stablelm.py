"""Tiny LLaVA checkpoints with StableLM's decoder, as in TinyLLaVA and Bunny."""

from __future__ import annotations

from pathlib import Path

from checkpoints import llava_config, save_llava
from weight_shapes import Config, Shapes, decoder_shapes, norm_shapes


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "siglip-biased-queries": _config("siglip", use_qkv_bias=True, partial_rotary_factor=0.5),
        "clip-parallel-shared-keys-yarn": _config(
            "clip",
            num_attention_heads=6,
            num_key_value_heads=2,
            hidden_size=96,
            use_parallel_residual=True,
            rope_parameters={  # of what turns alone: a quarter of a head
                "rope_type": "yarn",
                "rope_theta": 900.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 4.0,
                "beta_slow": 0.5,
                "partial_rotary_factor": 0.25,
            },
        ),
    }


def _config(tower: str, **text: object) -> Config:
    config = llava_config(tower, "stablelm", tie_word_embeddings=False)
    own = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": False}
    config["text_config"] |= {**own, **text}
    return config


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_llava(folder, config, _shapes(config["text_config"]))


def _shapes(text: Config) -> Shapes:
    """Return Llama's, with biases of the norms, and the second norm where layers are not parallel."""
    has_bias = text.get("use_qkv_bias", False)
    shapes = decoder_shapes({**text, "attention_bias": has_bias}, "")
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith("o_proj.bias")}
    for name in [name.removesuffix(".weight") for name in shapes if "norm" in name]:
        shapes |= norm_shapes(text["hidden_size"], name)
    if text.get("use_parallel_residual"):
        shapes = {name: shape for name, shape in shapes.items() if "post_attention_layernorm" not in name}
    return shapes
