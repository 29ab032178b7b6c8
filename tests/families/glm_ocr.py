"""Tiny GLM-OCR checkpoints: normed heads in tower, neighbours that turn together, four norms a layer of the decoder."""

from __future__ import annotations

import warnings
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
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes

IMAGE, VIDEO, START, END = "<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"
CONTROL = [PAD, BOS, EOS, IMAGE, VIDEO, START, END]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "three-heads-tied": _config(),
        "untied-no-biases-in-the-tower": _config(
            {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
            {"attention_bias": False, "num_heads": 1, "patch_size": 8, "hidden_size": 28},
            sections=[1, 2, 1],
            tie_word_embeddings=False,
        ),
    }


def _config(
    text: Config | None = None, vision: Config | None = None, sections: list[int] | None = None, **top: Any
) -> Config:
    words = {
        "model_type": "glm_ocr_text",
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 256 + len(CONTROL) + 2,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 800.0, "mrope_section": sections or [2, 3, 3]},
        **CONTROL_IDS,
        **(text or {}),
    }
    tower = {
        "model_type": "glm_ocr_vision",
        "hidden_size": 36,
        "intermediate_size": 44,
        "depth": 3,
        "num_heads": 3,
        "patch_size": 4,
        "out_hidden_size": 40,
        **(vision or {}),
    }
    return {
        "architectures": ["GlmOcrForConditionalGeneration"],
        "model_type": "glm_ocr",
        "image_token_id": 259,
        "video_token_id": 260,
        "image_start_token_id": 261,
        "image_end_token_id": 262,
        "tie_word_embeddings": True,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, shapes_of(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    images = {
        "image_processor_type": "Glm46VImageProcessor",
        "size": {"shortest_edge": 2 * 16 * 16, "longest_edge": 2 * 64 * 64},
        "patch_size": config["vision_config"]["patch_size"],
        "temporal_patch_size": 2,
        "merge_size": 2,
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_resize": True,
        **RESCALING,
    }
    save_processor(folder, "Glm46VProcessor", images)
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, eos_token=EOS)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def processor(folder: Path) -> Any:
    """Return transformers' processor, without the part for videos, which wants torchvision."""
    from transformers import AutoTokenizer, Glm46VImageProcessorPil, Glm46VProcessor

    class StillProcessor(Glm46VProcessor):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    images, tokenizer = Glm46VImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return StillProcessor(images, tokenizer, chat_template=TEMPLATE)


def inputs(processor: Any, parts: list[Any]) -> Any:
    """Return what the processor makes of one message; it turns a tensor into an array in numpy's old way."""
    images = [part for part in parts if not isinstance(part, str)]
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return processor(text=text, images=images or None, return_tensors="pt")


def shapes_of(config: Config) -> Shapes:
    """Name every weight."""
    text = config["text_config"]
    shapes = _tower_shapes(config["vision_config"], "model.visual.")
    width, prefix = text["hidden_size"], "model.language_model."
    shapes |= {f"{prefix}embed_tokens.weight": (text["vocab_size"], width), f"{prefix}norm.weight": (width,)}
    for number in range(text["num_hidden_layers"]):
        shapes |= layer_shapes(text, f"{prefix}layers.{number}.")
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], width)
    return shapes


def layer_shapes(text: Config, layer: str) -> Shapes:
    """Name every weight of a layer of the decoder."""
    width, inner, head = text["hidden_size"], text["intermediate_size"], text["head_dim"]
    heads, kv = text["num_attention_heads"] * head, text["num_key_value_heads"] * head
    shapes: Shapes = {
        f"{layer}self_attn.{name}_proj.weight": (rows, width) for name, rows in (("q", heads), ("k", kv), ("v", kv))
    }
    norms = ("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")
    shapes |= {f"{layer}{norm}.weight": (width,) for norm in norms}
    shapes |= {f"{layer}mlp.gate_up_proj.weight": (2 * inner, width), f"{layer}mlp.down_proj.weight": (width, inner)}
    return shapes | {f"{layer}self_attn.o_proj.weight": (width, heads)}


def _tower_shapes(vision: Config, prefix: str) -> Shapes:
    width, inner, patch, out = (
        vision[key] for key in ("hidden_size", "intermediate_size", "patch_size", "out_hidden_size")
    )
    bias = vision.get("attention_bias", True)
    shapes: Shapes = {
        f"{prefix}patch_embed.proj.weight": (width, 3, 2, patch, patch),
        f"{prefix}patch_embed.proj.bias": (width,),
        f"{prefix}post_layernorm.weight": (width,),
        f"{prefix}downsample.weight": (out, width, 2, 2),
        f"{prefix}downsample.bias": (out,),
    }
    for block in (f"{prefix}blocks.{number}." for number in range(vision["depth"])):
        shapes |= linear_shapes(f"{block}attn.qkv", 3 * width, width, bias=bias)
        shapes |= linear_shapes(f"{block}attn.proj", width, width, bias=bias)
        shapes |= {f"{block}attn.{name}_norm.weight": (width // vision["num_heads"],) for name in "qk"}
        shapes |= {f"{block}norm{number}.weight": (width,) for number in (1, 2)}
        for name, rows, columns in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
            shapes |= linear_shapes(f"{block}mlp.{name}_proj", rows, columns, bias=bias)
    merger = f"{prefix}merger."
    shapes |= norm_shapes(out, f"{merger}post_projection_norm") | linear_shapes(f"{merger}proj", out, out, bias=False)
    for name, rows, columns in (("gate", 3 * out, out), ("up", 3 * out, out), ("down", out, 3 * out)):
        shapes |= linear_shapes(f"{merger}{name}_proj", rows, columns, bias=False)
    return shapes
