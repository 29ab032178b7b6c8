"""Tiny Aria checkpoints: experts in one tensor, of which each token meets several, and images of one longer side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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
from safetensors.numpy import load_file, save_file
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, norm_shapes, tower_shapes

PATCH_PX = 70
"""So that images of 980 pixels, which the processor always makes, have few patches."""


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "two-of-nine-experts": _config({"moe_num_experts": 9, "moe_topk": 2, "moe_num_shared_experts": 1}),
        "one-expert-new-layout": _config(
            {
                "hidden_size": 48,
                "intermediate_size": 40,
                "num_attention_heads": 3,
                "num_key_value_heads": 1,
                "head_dim": 24,
                "moe_num_experts": 3,
                "moe_topk": 1,
                "moe_num_shared_experts": 3,
                "attention_bias": True,
            },
            {"num_attention_heads": 3, "hidden_act": "gelu"},
            projector_patch_to_query_dict={"196": 7},
        ),
    }


def _config(text: Config, vision: Config | None = None, **top: object) -> Config:
    words = {
        "model_type": "aria_text",
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256 + len(CONTROL),
        "max_position_embeddings": 512,
        **CONTROL_IDS,
        **text,
    }
    tower = {
        "model_type": "idefics3_vision",
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 980,
        "patch_size": PATCH_PX,
        **(vision or {}),
    }
    return {
        "architectures": ["AriaForConditionalGeneration"],
        "model_type": "aria",
        "image_token_index": IMAGE_TOKEN_ID,
        "projector_patch_to_query_dict": {"49": 3, "196": 5},
        "tie_word_embeddings": False,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, under the names of the published one or of transformers 5."""
    save_model(folder, config, _shapes(config))
    _redraw(folder / "model.safetensors")
    write_json(folder / "generation_config.json", CONTROL_IDS)
    images = {
        "image_processor_type": "AriaImageProcessor",
        "max_image_size": 490,  # the processor asks for 980 whatever stands here
        "min_image_size": 336,
        "split_image": True,
        "split_resolutions": [[490, 980]],
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        **RESCALING,
    }
    tokens = {490: 3, 980: config["projector_patch_to_query_dict"]["196"]}
    save_processor(folder, "AriaProcessor", images, size_conversion=tokens)
    save_byte_tokenizer(folder, CONTROL, **NAMED, extra_special_tokens={"image_token": "<image>"})
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _redraw(file: Path) -> None:
    """Draw experts as large as other matrices are, whose last axis is of inputs; and let no answer hold an image."""
    weights = load_file(file)
    for name in weights:
        if ".experts." in name:
            weights[name] = weights[name] * np.float32(weights[name].shape[2] ** 0.5)
        if "lm_head." in name:
            weights[name][IMAGE_TOKEN_ID] = 0  # never the largest score
    save_file(weights, file, {"format": "pt"})


def _shapes(config: Config) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    width, inner, num = text["hidden_size"], text["intermediate_size"], text["moe_num_experts"]
    is_new = len(config["projector_patch_to_query_dict"]) == 1
    root, before = ("model.", "model.language_model.") if is_new else ("", "language_model.model.")
    shapes = {name: shape for name, shape in decoder_shapes(text, before).items() if ".mlp." not in name}
    first, second = ("gate_up_proj", "down_proj") if is_new else ("fc1.weight", "fc2.weight")
    for layer in (f"{before}layers.{number}.mlp." for number in range(text["num_hidden_layers"])):
        shapes |= linear_shapes(f"{layer}router", num, width, bias=False)
        shapes |= {f"{layer}experts.{first}": (num, width, 2 * inner), f"{layer}experts.{second}": (num, inner, width)}
        shared = inner * text["moe_num_shared_experts"]
        for name, rows, columns in (("gate", shared, width), ("up", shared, width), ("down", width, shared)):
            shapes |= linear_shapes(f"{layer}shared_experts.{name}_proj", rows, columns, bias=False)
    shapes |= linear_shapes("lm_head" if is_new else "language_model.lm_head", text["vocab_size"], width, bias=False)
    shapes |= tower_shapes(vision, f"{root}vision_tower.")
    return shapes | _projector(config, f"{root}multi_modal_projector.")


def _projector(config: Config, prefix: str) -> Shapes:
    size, width = config["vision_config"]["hidden_size"], config["text_config"]["hidden_size"]
    look, most = f"{prefix}cross_attn.", max(config["projector_patch_to_query_dict"].values())
    shapes: Shapes = {f"{prefix}query": (most, size), f"{look}multihead_attn.in_proj_weight": (3 * size, size)}
    shapes[f"{look}multihead_attn.in_proj_bias"] = (3 * size,)
    shapes |= norm_shapes(size, f"{look}layer_norm", f"{look}layer_norm_kv", f"{prefix}layer_norm")
    for name in ("q_proj", "k_proj", "v_proj"):
        shapes |= linear_shapes(f"{look}{name}", size, size, bias=False)
    for name in ("multihead_attn.out_proj", "linear"):
        shapes |= linear_shapes(f"{look}{name}", size, size)
    shapes |= linear_shapes(f"{prefix}feed_forward.linear_in", width, size, bias=False)
    return shapes | linear_shapes(f"{prefix}feed_forward.linear_out", width, width, bias=False)
