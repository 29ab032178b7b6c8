"""Tiny Idefics2 checkpoints: images in their own shape, with quarters and without, and a perceiver."""

from __future__ import annotations

from pathlib import Path

from checkpoints import (
    CONTROL,
    CONTROL_IDS,
    IMAGE_TOKEN_ID,
    NAMED,
    RESCALING,
    TEMPLATE,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, tower_shapes


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    shared = {"resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 6, "resampler_head_dim": 8}
    return {
        "mistral-shared-key": _config({**shared, "num_key_value_heads": 2}),
        "llama-tied-one-layer": _config(
            {**shared, "num_key_value_heads": 6, "hidden_act": "gelu", "resampler_depth": 1, "rms_norm_eps": 1e-4},
            {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 64},
            {"image_size": 40, "patch_size": 8, "num_hidden_layers": 2},
            tie_word_embeddings=True,
        ),
    }


def _config(perceiver: Config, text: Config | None = None, vision: Config | None = None, **top: bool) -> Config:
    words = {
        "model_type": "mistral",
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 256 + len(CONTROL),
        "max_position_embeddings": 512,
        "sliding_window": None,
        **CONTROL_IDS,
        **(text or {}),
    }
    tower = {
        "model_type": "idefics2_vision",
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 49,
        "patch_size": 7,
        **(vision or {}),
    }
    return {
        "architectures": ["Idefics2ForConditionalGeneration"],
        "model_type": "idefics2",
        "image_token_id": IMAGE_TOKEN_ID,
        "tie_word_embeddings": False,
        "text_config": words,
        "vision_config": tower,
        "perceiver_config": {"model_type": "idefics2_perceiver", "hidden_size": words["hidden_size"], **perceiver},
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32; images are quartered where the table is not tied."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    images = {
        "image_processor_type": "Idefics2ImageProcessor",
        "size": {"shortest_edge": 20, "longest_edge": 50},
        "do_image_splitting": not config["tie_word_embeddings"],
        "resample": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_resize": True,
        "do_pad": True,
        **RESCALING,
    }
    latents = config["perceiver_config"]["resampler_n_latents"]
    save_processor(folder, "Idefics2Processor", images, image_seq_len=latents)
    tokens = {"image_token": "<image>", "image_boundary_token": "<fake_token_around_image>"}
    save_byte_tokenizer(folder, CONTROL, **NAMED, extra_special_tokens=tokens)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _shapes(config: Config) -> Shapes:
    text, vision, perceiver = config["text_config"], config["vision_config"], config["perceiver_config"]
    width, inner = text["hidden_size"], text["intermediate_size"]
    shapes = decoder_shapes(text, "model.text_model.") | tower_shapes(vision, "model.vision_model.")
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], width)
    shapes |= _gated("model.connector.modality_projection.", vision["hidden_size"], inner, width)
    resampler, heads = "model.connector.perceiver_resampler.", perceiver["resampler_n_heads"]
    shapes |= {f"{resampler}latents": (perceiver["resampler_n_latents"], width), f"{resampler}norm.weight": (width,)}
    for layer in (f"{resampler}layers.{number}." for number in range(perceiver["resampler_depth"])):
        attention, size = f"{layer}self_attn.", perceiver["resampler_head_dim"]
        shared = perceiver["num_key_value_heads"] * size
        for name, rows in (("q", heads * size), ("k", shared), ("v", shared)):
            shapes |= linear_shapes(f"{attention}{name}_proj", rows, width, bias=False)
        shapes |= linear_shapes(f"{attention}o_proj", width, heads * size, bias=False)
        norms = ("input_latents_norm", "input_context_norm", "post_attention_layernorm")
        shapes |= {f"{layer}{norm}.weight": (width,) for norm in norms}
        shapes |= _gated(f"{layer}mlp.", width, 4 * width, width)
    return shapes


def _gated(prefix: str, in_size: int, inner: int, out_size: int) -> Shapes:
    shapes = linear_shapes(f"{prefix}down_proj", out_size, inner, bias=False)
    for name in ("gate", "up"):
        shapes |= linear_shapes(f"{prefix}{name}_proj", inner, in_size, bias=False)
    return shapes
