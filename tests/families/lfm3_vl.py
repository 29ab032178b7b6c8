"""Tiny LFM3-VL checkpoints: convolutions over patches, gated heads that see near or far, long taps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import (
    BOS,
    CLIP_MEAN,
    CLIP_STD,
    CONTROL_IDS,
    EOS,
    PAD,
    RESCALING,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from weight_shapes import Config, Shapes, linear_shapes

IMAGE, VIDEO, START, END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
CONTROL = [PAD, BOS, EOS, IMAGE, VIDEO, START, END]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|video_pad|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    ropes = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": 900.0,
            "partial_rotary_factor": 0.4,
            "factor": 1.5,
        },
    }
    return {
        "published-names-tied-one-key-head": _config({}, {}),
        "transformers-names-untied-plain-layers-biases": _config(
            {
                "hidden_size": 64,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "conv_bias": True,
                "attention_bias": True,
                "conv_L_cache": 4,
                "layer_types": ["full_attention", "conv", "sliding_attention"],
                "num_hidden_layers": 3,
                "sliding_window": 9,
                "intermediate_size": 88,
                "use_sandwich_norm": False,
                "use_attention_gate": False,
                "rope_parameters": ropes,
            },
            {
                "hidden_size": 48,
                "num_attention_heads": 6,
                "num_key_value_heads": 6,
                "layer_types": ["full_attention", "conv"],
                "num_hidden_layers": 2,
                "patch_size": 8,
                "conv_kernel_size": 5,
                "rope_parameters": {"rope_type": "axial", "rope_theta": 500.0},
            },
            projector_bias=False,
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config, vision: Config, **top: Any) -> Config:
    words = {
        "model_type": "lfm3",
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "conv_L_cache": 7,
        "sliding_window": 6,
        "vocab_size": 256 + len(CONTROL) + 3,
        "max_position_embeddings": 512,
        **CONTROL_IDS,
        **text,
    }
    tower = {
        "model_type": "lfm3_vl_vision",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "patch_size": 4,
        **vision,
    }
    return {
        "architectures": ["Lfm3VlForConditionalGeneration"],
        "model_type": "lfm3_vl",
        "image_token_id": 259,
        "video_token_id": 260,
        "vision_start_token_id": 261,
        "vision_end_token_id": 262,
        "projector_hidden_size": 44,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    images = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
        "patch_size": config["vision_config"]["patch_size"],
        "temporal_patch_size": 2,
        "merge_size": 2,
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_resize": True,
        **RESCALING,
    }
    save_processor(folder, "Lfm3VlProcessor", images)
    frames = {"shortest_edge": 16 * 16, "longest_edge": 8 * 64 * 64}
    write_json(folder / "video_preprocessor_config.json", {**images, "size": frames})
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, eos_token=EOS)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def processor(folder: Path) -> Any:
    """Return transformers' processor without its part for videos, which wants torchvision."""
    from transformers import AutoTokenizer, Lfm3VlProcessor, Qwen2VLImageProcessorPil

    class StillProcessor(Lfm3VlProcessor):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    images, tokenizer = Qwen2VLImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return StillProcessor(images, tokenizer, chat_template=TEMPLATE)


def _shapes(config: Config) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    is_published = config.get("tie_word_embeddings", True)
    shapes = _decoder_shapes(text, "model.language_model.", gate="gate_proj" if is_published else "g_proj")
    if not is_published:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    connector, bias = "model.multi_modal_projector", config.get("projector_bias", True)
    width, inner = vision["hidden_size"], config["projector_hidden_size"]
    shapes |= {f"{connector}.layer_norm.{part}": (width,) for part in ("weight", "bias")}
    shapes |= linear_shapes(f"{connector}.linear_1", inner, 4 * width, bias=bias)
    shapes |= linear_shapes(f"{connector}.linear_2", text["hidden_size"], inner, bias=bias)
    return shapes | _tower_shapes(vision, is_published=is_published)


def _tower_shapes(vision: Config, *, is_published: bool) -> Shapes:
    prefix, width, inner = "model.vision_tower.", vision["hidden_size"], vision["intermediate_size"]
    head = width // vision["num_attention_heads"]
    kinds = vision.get("layer_types") or ["conv", "conv", "full_attention", "conv"]
    patches, norm = ("patchifier", "layernorm") if is_published else ("patch_embed", "norm")
    shapes: Shapes = {
        f"{prefix}{patches}.weight": (width, 3 * 2 * vision["patch_size"] ** 2),
        f"{prefix}embedding_norm.weight": (width,),
    }
    for number, kind in enumerate(kinds):
        layer = f"{prefix}layers.{number}."
        shapes |= _feed_forward(layer, width, inner)
        if kind == "conv":
            side = vision.get("conv_kernel_size", 3)
            shapes |= linear_shapes(f"{layer}conv.in_proj", 3 * width, width, bias=False)
            shapes |= linear_shapes(f"{layer}conv.out_proj", width, width, bias=False)
            shapes[f"{layer}conv.spatial_conv.weight"] = (width, 1, side, side)
            continue
        shared = vision["num_key_value_heads"] * head
        for name, rows in (("q_proj", width), ("k_proj", shared), ("v_proj", shared), ("out_proj", width)):
            shapes |= linear_shapes(f"{layer}self_attn.{name}", rows, width, bias=False)
        shapes |= {f"{layer}self_attn.{name}_{norm}.weight": (head,) for name in "qk"}
    return shapes


def _decoder_shapes(text: Config, prefix: str, *, gate: str) -> Shapes:
    width, heads, head = text["hidden_size"], text["num_attention_heads"], text["head_dim"]
    kinds = text.get("layer_types") or ["conv", "conv", "full_attention", "conv", "sliding_attention"]
    bias, conv_bias = text.get("attention_bias", False), text.get("conv_bias", False)
    shapes: Shapes = {
        f"{prefix}embed_tokens.weight": (text["vocab_size"], width),
        f"{prefix}embedding_norm.weight": (width,),
    }
    for number, kind in enumerate(kinds):
        layer = f"{prefix}layers.{number}."
        shapes |= _feed_forward(layer, width, text["intermediate_size"])
        if text.get("use_sandwich_norm", True):
            shapes |= {f"{layer}post_{name}_norm.weight": (width,) for name in ("operator", "ffn")}
        if kind == "conv":
            shapes |= linear_shapes(f"{layer}conv.in_proj", 3 * width, width, bias=conv_bias)
            shapes |= linear_shapes(f"{layer}conv.out_proj", width, width, bias=conv_bias)
            shapes[f"{layer}conv.conv.weight"] = (width, 1, text["conv_L_cache"])
            shapes |= {f"{layer}conv.conv.bias": (width,)} if conv_bias else {}
            continue
        attention, shared = f"{layer}self_attn.", text["num_key_value_heads"] * head
        for name, rows in (("q_proj", heads * head), ("k_proj", shared), ("v_proj", shared)):
            shapes |= linear_shapes(f"{attention}{name}", rows, width, bias=bias)
        shapes |= linear_shapes(f"{attention}o_proj", width, heads * head, bias=bias)
        shapes |= {f"{attention}{name}_norm.weight": (head,) for name in "qk"}
        if text.get("use_attention_gate", True):
            shapes |= linear_shapes(f"{attention}{gate}", heads, width, bias=False)
    return shapes


def _feed_forward(layer: str, width: int, inner: int) -> Shapes:
    shapes: Shapes = {f"{layer}{name}_norm.weight": (width,) for name in ("operator", "ffn")}
    for name, rows, columns in (("w1", inner, width), ("w3", inner, width), ("w2", width, inner)):
        shapes |= linear_shapes(f"{layer}feed_forward.{name}", rows, columns, bias=False)
    return shapes
