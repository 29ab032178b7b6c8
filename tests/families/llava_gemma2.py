"""Tiny LLaVA checkpoints with the decoders of Gemma 2 and 3: windows and capped scores, nothing looks forward."""

from __future__ import annotations

from pathlib import Path

from checkpoints import llava_config, save_llava
from family_gemma3 import four_norms, write_as_gemma
from weight_shapes import Config, decoder_shapes


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "siglip-gemma2-caps": _config(
            "siglip",
            "gemma2",
            sliding_window=9,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=None,
            query_pre_attn_scalar=9,
            head_dim=24,
            hidden_size=48,
            num_attention_heads=3,
            num_key_value_heads=3,
        ),
        "clip-gemma3-new-spelling": _config(
            "clip",
            "gemma3_text",
            sliding_window=6,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
            head_dim=16,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 200.0},
            },
        ),
    }


def _config(tower: str, decoder: str, **text: object) -> Config:
    config = llava_config(tower, decoder, tie_word_embeddings=False)
    config["text_config"] |= {"tie_word_embeddings": False, "num_hidden_layers": 3, **text}
    return config


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    text = config["text_config"]
    shapes = decoder_shapes(text, "") | four_norms(text, "")
    if text["model_type"] == "gemma3_text":
        for layer in range(text["num_hidden_layers"]):
            shapes |= {f"layers.{layer}.self_attn.{name}_norm.weight": (text["head_dim"],) for name in "qk"}
    save_llava(folder, config, shapes)
    write_as_gemma(folder / "model.safetensors", ("language_model.",))
