"""Tiny Gemma 4 checkpoints: heads of two sizes, shared rows, numbers of tokens for layers, bounds around matrices."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import (
    BOS,
    CONTROL_IDS,
    EOS,
    NAMED,
    PAD,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from safetensors.numpy import load_file, save_file
from weight_shapes import Config, Shapes, linear_shapes

START, END, IMAGE, AUDIO, VIDEO = "<|image>", "<image|>", "<|image|>", "<|audio|>", "<|video|>"
CONTROL = [PAD, BOS, EOS, START, END, IMAGE, AUDIO, VIDEO, "<|audio>", "<audio|>", "<|turn>"]
MEDIA_IDS = {"image_token_id": 261, "audio_token_id": 262, "video_token_id": 263}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<|image|>{% elif part.type == 'video' %}<|video|>"
    "{% else %}{{ part.text | trim }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
FRAME_TOKENS = 30
_TABLE_SCALE = 0.04
_BRANCH_SCALE = 0.1
"""Of what three branches a layer add, for rounding errors not to grow from layer to layer."""
_LOGIT_SCALE = 6.0
_SLIDING, _FULL = "sliding_attention", "full_attention"
_BOUNDS = {"input_min": -1.5, "input_max": 1.25, "output_min": -2.5, "output_max": 3.0}


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "two-layers-share-two-rows-bounds-tied": config(),
        "values-are-keys-no-numbers-for-layers-biases-untied": config(
            {
                "layer_types": [_FULL, _SLIDING, _FULL],
                "num_hidden_layers": 3,
                "num_kv_shared_layers": 0,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "per_layer_config": {str(number): {"head_dim": 32, "num_key_value_heads": 1} for number in (0, 2)},
                "attention_k_eq_v": True,
                "attention_bias": True,
                "hidden_size_per_layer_input": 0,
                "use_double_wide_mlp": False,
                "final_logit_softcapping": None,
                "sliding_window": 40,
                "rope_parameters": {
                    _SLIDING: {"rope_type": "default", "rope_theta": 300.0},
                    _FULL: {
                        "rope_type": "proportional",
                        "partial_rotary_factor": 0.5,
                        "factor": 2.0,
                        "rope_theta": 5000.0,
                    },
                },
            },
            {"use_clipped_linears": False, "standardize": True, "pooling_kernel_size": 2, "head_dim": 20},
            tie_word_embeddings=False,
        ),
    }


def config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    """Return a tiny config; arguments override its parts."""
    newer = "per_layer_config" in (text or {})
    words = {
        "model_type": "gemma4_text",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 2,
        "layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING, _FULL],
        "head_dim": 16,
        **({} if newer else {"global_head_dim": 24, "num_global_key_value_heads": None}),
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": 256 + len(CONTROL) + 3,
        "vocab_size": 256 + len(CONTROL) + 3,
        "final_logit_softcapping": 30.0,
        "max_position_embeddings": 512,
        "sliding_window": 6,
        **CONTROL_IDS,
        **(text or {}),
    }
    tower = {
        "model_type": "gemma4_vision",
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 12,
        "patch_size": 4,
        "pooling_kernel_size": 3,
        "position_embedding_size": 240,
        "use_clipped_linears": True,
        "standardize": False,
        **(vision or {}),
    }
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "boi_token_id": 259,
        "eoi_token_id": 260,
        **MEDIA_IDS,
        "tie_word_embeddings": True,
        "text_config": words,
        "vision_config": tower,
        "audio_config": None,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, shapes(config))
    rewrite(folder / "model.safetensors")
    write_json(folder / "generation_config.json", CONTROL_IDS)
    vision = config["vision_config"]
    images = {
        "image_processor_type": "Gemma4ImageProcessor",
        "patch_size": vision["patch_size"],
        "pooling_kernel_size": vision["pooling_kernel_size"],
        "max_soft_tokens": 70,
        "do_normalize": False,
        "do_rescale": True,
        "do_resize": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "image_mean": [0.0] * 3,
        "image_std": [1.0] * 3,
    }
    sizes = {key: images[key] for key in ("patch_size", "pooling_kernel_size")}
    video = {"video_processor_type": "Gemma4VideoProcessor", "max_soft_tokens": FRAME_TOKENS, **sizes}
    save_processor(folder, "Gemma4Processor", images, image_seq_length=70, video_processor=video)
    named = {"boi_token": START, "eoi_token": END, "image_token": IMAGE, "audio_token": AUDIO}
    around = {"boa_token": "<|audio>", "eoa_token": "<audio|>"}
    save_byte_tokenizer(folder, CONTROL, extra_special_tokens={**named, **around}, **NAMED)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def processor(folder: Path) -> Any:
    """Return transformers' processor, without its parts for videos and sounds, which want torchvision."""
    from transformers import AutoTokenizer, Gemma4Processor
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    class StillProcessor(Gemma4Processor):  # type: ignore[misc]
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(name, argument)

    images = Gemma4ImageProcessorPil.from_pretrained(folder)
    return StillProcessor(None, images, AutoTokenizer.from_pretrained(folder), None, chat_template=TEMPLATE)


def rewrite(path: Path) -> None:
    """Rewrite weights that random numbers around 0 say nothing of: bounds, scales of layers, and tables."""
    weights = load_file(path)
    for name in weights:
        last, shade = name.rsplit(".", 1)[-1], np.float32(1 + zlib.crc32(name.encode()) % 16 / 40)
        if last in _BOUNDS:
            weights[name] = np.array(_BOUNDS[last] * shade, np.float32)
        elif last in ("layer_scalar", "std_scale"):
            weights[name] = weights[name] + np.float32(0.8)
        elif ".post_" in name and "language_model" in name:
            weights[name] = weights[name] * np.float32(_BRANCH_SCALE)
        elif name.endswith("language_model.norm.weight"):
            weights[name] = weights[name] * np.float32(_LOGIT_SCALE)
        elif name.endswith("embed_tokens.weight"):
            weights[name] = weights[name] * np.float32(_TABLE_SCALE)
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            weights[name][list(MEDIA_IDS.values())] = 0  # never said: transformers would look for an image of it
    save_file(weights, path, {"format": "pt"})


def shapes(config: Config) -> Shapes:
    """Name every weight."""
    text, vision = config["text_config"], config["vision_config"]
    width, before = text["hidden_size"], "model.language_model."
    found: Shapes = {
        f"{before}embed_tokens.weight": (text["vocab_size"], width),
        f"{before}norm.weight": (width,),
        "model.embed_vision.embedding_projection.weight": (width, vision["hidden_size"]),
    }
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (text["vocab_size"], width)
    if own := text["hidden_size_per_layer_input"]:
        wide = own * text["num_hidden_layers"]
        found[f"{before}embed_tokens_per_layer.weight"] = (text["vocab_size_per_layer_input"], wide)
        found[f"{before}per_layer_model_projection.weight"] = (wide, width)
        found[f"{before}per_layer_projection_norm.weight"] = (own,)
    for number in range(text["num_hidden_layers"]):
        found |= _layer_shapes(text, number, f"{before}layers.{number}.")
    return found | _tower_shapes(vision, "model.vision_tower.")


def _layer_shapes(text: Config, number: int, before: str) -> Shapes:
    width, own = text["hidden_size"], text["hidden_size_per_layer_input"]
    is_full = text["layer_types"][number] == _FULL
    shares = number >= text["num_hidden_layers"] - text["num_kv_shared_layers"]
    inner = text["intermediate_size"] * (2 if shares and text["use_double_wide_mlp"] else 1)
    usual = {"head_dim": text["head_dim"], "num_key_value_heads": text["num_key_value_heads"]}
    if "per_layer_config" in text:
        usual |= text["per_layer_config"].get(str(number), {})
    elif is_full:
        usual["head_dim"] = text["global_head_dim"]
    size, bias = usual["head_dim"], bool(text.get("attention_bias"))
    heads, kv = text["num_attention_heads"] * size, usual["num_key_value_heads"] * size
    attention, mlp = f"{before}self_attn.", f"{before}mlp."
    found = linear_shapes(f"{attention}q_proj", heads, width, bias=bias)
    found |= linear_shapes(f"{attention}o_proj", width, heads, bias=bias) | {f"{attention}q_norm.weight": (size,)}
    if not shares:
        for name in "k" if is_full and text.get("attention_k_eq_v") else "kv":
            found |= linear_shapes(f"{attention}{name}_proj", kv, width, bias=bias)
        found[f"{attention}k_norm.weight"] = (size,)
    for name, rows, columns in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
        found |= linear_shapes(f"{mlp}{name}_proj", rows, columns, bias=False)
    norms = [*_FOUR_NORMS]
    if own:
        found |= linear_shapes(f"{before}per_layer_input_gate", own, width, bias=False)
        found |= linear_shapes(f"{before}per_layer_projection", width, own, bias=False)
        norms.append("post_per_layer_input_norm")
    return found | {f"{before}{name}.weight": (width,) for name in norms} | {f"{before}layer_scalar": (1,)}


_FOUR_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def _tower_shapes(vision: Config, before: str) -> Shapes:
    width, inner, size = vision["hidden_size"], vision["intermediate_size"], vision["head_dim"]
    heads, patch = vision["num_attention_heads"] * size, vision["patch_size"]
    found: Shapes = {
        f"{before}patch_embedder.input_proj.weight": (width, 3 * patch**2),
        f"{before}patch_embedder.position_embedding_table": (2, vision["position_embedding_size"], width),
    }
    if vision["standardize"]:
        found |= {f"{before}std_bias": (width,), f"{before}std_scale": (width,)}
    for layer in (f"{before}encoder.layers.{number}." for number in range(vision["num_hidden_layers"])):
        matrices = {f"self_attn.{name}_proj": (heads, width) for name in "qkv"} | {"self_attn.o_proj": (width, heads)}
        matrices |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
        for name, shape in matrices.items():
            found[f"{layer}{name}.linear.weight"] = shape
            if vision["use_clipped_linears"]:
                found |= {f"{layer}{name}.{bound}": () for bound in _BOUNDS}
        found |= {f"{layer}self_attn.{name}_norm.weight": (size,) for name in "qk"}
        found |= {f"{layer}{name}.weight": (width,) for name in _FOUR_NORMS}
    return found
