"""The weights of tests/checkpoints.py: names and shapes as transformers saves them, computed from a config."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


def drawn_weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a weight that follows from its name and shape: matrices with gain 2, norms near 1, vectors near 0."""
    if not shape:
        return np.array(2.6592, np.float32)  # CLIP's logit scale
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if name.endswith("running_var"):
        return np.abs(noise) + np.float32(0.5)
    if len(shape) == 1:
        is_norm = ("norm" in name or ".bn." in name) and name.endswith("weight")
        return np.float32(is_norm) + np.float32(0.2) * noise
    if name.endswith(".gamma"):
        return np.float32(0.3) * noise
    # convolutions without norms between them: each would enlarge what comes behind all the others
    gain = 1 if "reparam_conv" in name else 2
    return noise if "embed" in name and len(shape) == 2 else np.float32(gain / math.prod(shape[1:]) ** 0.5) * noise


def smolvlm_shapes(config: Config) -> Shapes:
    """Name every weight of a SmolVLM model."""
    text, vision = config["text_config"], config["vision_config"]
    pooled = vision["hidden_size"] * config["scale_factor"] ** 2
    shapes = decoder_shapes(text, "model.text_model.") | tower_shapes(vision, "model.vision_model.")
    shapes["model.connector.modality_projection.proj.weight"] = (text["hidden_size"], pooled)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    return shapes


def llava_shapes(config: Config, decoder: Shapes | None = None) -> Shapes:
    """Name every weight of a LLaVA model; `decoder` are those of the text part without its head, Llama's by default."""
    text, vision = config["text_config"], config["vision_config"]
    decoder = decoder_shapes(text, "") if decoder is None else decoder
    shapes = {f"language_model.model.{name}": shape for name, shape in decoder.items()}
    shapes |= tower_shapes(vision, "vision_tower.")
    chosen = config["vision_feature_layer"]
    columns = vision["hidden_size"] * (len(chosen) if isinstance(chosen, list) else 1)
    shapes |= linear_shapes("multi_modal_projector.linear_1", text["hidden_size"], columns)
    shapes |= linear_shapes("multi_modal_projector.linear_2", text["hidden_size"], text["hidden_size"])
    if not config["tie_word_embeddings"]:
        shapes["language_model.lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    return shapes


def clip_shapes(config: Config) -> Shapes:
    """Name every weight of a CLIP model."""
    text, vision = config["text_config"], config["vision_config"]
    projections: Shapes = {
        "text_projection.weight": (config["projection_dim"], text["hidden_size"]),
        "visual_projection.weight": (config["projection_dim"], vision["hidden_size"]),
        "logit_scale": (),
    }
    return projections | _text_tower_shapes(text) | tower_shapes(vision, "vision_model.")


def siglip_shapes(config: Config) -> Shapes:
    """Name every weight of a SigLIP model."""
    text, vision = config["text_config"], config["vision_config"]
    rest = linear_shapes("text_model.head", text["projection_size"], text["hidden_size"])
    rest |= {"logit_scale": (1,), "logit_bias": (1,)}
    return rest | _text_tower_shapes(text) | tower_shapes(vision, "vision_model.")


def decoder_shapes(text: Config, prefix: str) -> Shapes:
    """Name every weight of a Llama or Qwen2 decoder without its head."""
    width, inner, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    head = text.get("head_dim", width // heads)
    kv = text["num_key_value_heads"] * head
    is_qwen2, is_biased = text["model_type"] == "qwen2", text.get("attention_bias", False)
    shapes: Shapes = {f"{prefix}embed_tokens.weight": (text["vocab_size"], width), f"{prefix}norm.weight": (width,)}
    for layer in (f"{prefix}layers.{number}." for number in range(text["num_hidden_layers"])):
        for name, rows in (("q", heads * head), ("k", kv), ("v", kv)):
            shapes |= linear_shapes(f"{layer}self_attn.{name}_proj", rows, width, bias=is_qwen2 or is_biased)
        shapes |= linear_shapes(f"{layer}self_attn.o_proj", width, heads * head, bias=is_biased)
        for name, rows, columns in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
            shapes |= linear_shapes(f"{layer}mlp.{name}_proj", rows, columns, bias=text.get("mlp_bias", False))
        shapes |= {f"{layer}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return shapes


def tower_shapes(vision: Config, prefix: str) -> Shapes:
    """Name every weight of a vision tower."""
    width, patch = vision["hidden_size"], vision["patch_size"]
    num_patches = (vision["image_size"] // patch) ** 2
    is_clip = vision["model_type"] == "clip_vision_model"
    shapes: Shapes = {
        f"{prefix}embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{prefix}embeddings.position_embedding.weight": (num_patches + is_clip, width),
        f"{prefix}embeddings.{'class_embedding' if is_clip else 'patch_embedding.bias'}": (width,),
    }
    norms = ["pre_layrnorm", "post_layernorm"] if is_clip else ["post_layernorm"]
    shapes |= _layers_shapes(vision, prefix, norms)
    if vision["model_type"] == "siglip_vision_model":
        shapes |= {f"{prefix}head.probe": (1, 1, width), f"{prefix}head.attention.in_proj_weight": (3 * width, width)}
        shapes[f"{prefix}head.attention.in_proj_bias"] = (3 * width,)
        shapes |= linear_shapes(f"{prefix}head.attention.out_proj", width, width) | norm_shapes(
            width, f"{prefix}head.layernorm"
        )
        shapes |= _mlp_shapes(vision, f"{prefix}head.")
    return shapes


def pixtral_shapes(vision: Config, prefix: str) -> Shapes:
    """Name every weight of Pixtral's tower."""
    width, inner, patch_px = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    shapes: Shapes = {
        f"{prefix}patch_conv.weight": (width, 3, patch_px, patch_px),
        f"{prefix}ln_pre.weight": (width,),
    }
    for number in range(vision["num_hidden_layers"]):
        layer = f"{prefix}transformer.layers.{number}."
        shapes |= {f"{layer}{name}_norm.weight": (width,) for name in ("attention", "ffn")}
        for name in "qkvo":
            shapes |= linear_shapes(f"{layer}attention.{name}_proj", width, width, bias=False)
        for name, rows, columns in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
            shapes |= linear_shapes(f"{layer}feed_forward.{name}_proj", rows, columns, bias=False)
    return shapes


def merged_projector_shapes(config: Config, prefix: str) -> Shapes:
    """Name every weight of Mistral 3's connector."""
    width, size = config["vision_config"]["hidden_size"], config["text_config"]["hidden_size"]
    merged, bias = width * config["spatial_merge_size"] ** 2, config.get("multimodal_projector_bias", False)
    shapes: Shapes = {f"{prefix}norm.weight": (width,)}
    shapes |= linear_shapes(f"{prefix}patch_merger.merging_layer", width, merged, bias=False)
    shapes |= linear_shapes(f"{prefix}linear_1", size, width, bias=bias)
    return shapes | linear_shapes(f"{prefix}linear_2", size, size, bias=bias)


def _text_tower_shapes(text: Config) -> Shapes:
    width = text["hidden_size"]
    embeddings = {
        "text_model.embeddings.token_embedding.weight": (text["vocab_size"], width),
        "text_model.embeddings.position_embedding.weight": (text["max_position_embeddings"], width),
    }
    return embeddings | _layers_shapes(text, "text_model.", ["final_layer_norm"])


def _layers_shapes(sizes: Config, prefix: str, norms: Iterable[str]) -> Shapes:
    width = sizes["hidden_size"]
    shapes = norm_shapes(width, *(f"{prefix}{name}" for name in norms))
    for layer in (f"{prefix}encoder.layers.{number}." for number in range(sizes["num_hidden_layers"])):
        shapes |= norm_shapes(width, f"{layer}layer_norm1", f"{layer}layer_norm2") | _mlp_shapes(sizes, layer)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear_shapes(f"{layer}self_attn.{name}", width, width)
    return shapes


def _mlp_shapes(sizes: Config, prefix: str) -> Shapes:
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    return linear_shapes(f"{prefix}mlp.fc1", inner, width) | linear_shapes(f"{prefix}mlp.fc2", width, inner)


def norm_shapes(width: int, *names: str) -> Shapes:
    return {f"{name}.{part}": (width,) for name in names for part in ("weight", "bias")}


def linear_shapes(name: str, rows: int, columns: int, *, bias: bool = True) -> Shapes:
    weight: Shapes = {f"{name}.weight": (rows, columns)}
    return weight | {f"{name}.bias": (rows,)} if bias else weight
