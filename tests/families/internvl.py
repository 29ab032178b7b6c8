"""Tiny InternVL checkpoints: tiles of the nearest grid, both kinds of InternViT, Qwen2 and Qwen3."""

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
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, norm_shapes

IMAGE, START, END, VIDEO = "<IMG_CONTEXT>", "<img>", "</img>", "<video>"
CONTROL = [PAD, BOS, EOS, IMAGE, START, END, VIDEO]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<IMG_CONTEXT>\n"
    "{% elif part.type == 'video' %}<video>\n{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 700.0}
    return {
        "qwen2-tied-layer-norms": _config({"model_type": "qwen2", "rope_parameters": dynamic}),
        "qwen3-untied-rms-norms-biases-norm-behind": _config(
            {
                "model_type": "qwen3",
                "hidden_size": 44,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
            },
            {
                "norm_type": "rms_norm",
                "use_qk_norm": True,
                "attention_bias": True,
                "use_mean_pooling": False,
                "image_size": [24, 24],
                "patch_size": [3, 3],
                "num_attention_heads": 4,
            },
            downsample_ratio=0.25,
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config, vision: Config | None = None, **top: Any) -> Config:
    words = {
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "vocab_size": 256 + len(CONTROL) + 3,
        "max_position_embeddings": 512,
        **CONTROL_IDS,
        **text,
    }
    tower = {
        "model_type": "internvl_vision",
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "patch_size": 4,
        "image_size": 16,
        **(vision or {}),
    }
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "image_token_id": 259,
        "image_seq_length": 4,
        "downsample_ratio": 0.5,
        "tie_word_embeddings": True,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32; older names of weights where the table is tied."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    side = _side(config["vision_config"]["image_size"])
    images = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "size": {"height": side, "width": side},
        "crop_to_patches": False,  # as published checkpoints have it: the processor overrides it
        "min_patches": 1,
        "max_patches": 6,
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_resize": True,
        **RESCALING,
    }
    save_processor(folder, "InternVLProcessor", images, image_seq_length=config["image_seq_length"])
    named = {"start_image_token": START, "end_image_token": END, "context_image_token": IMAGE, "video_token": VIDEO}
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, eos_token=EOS, extra_special_tokens=named)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def processor(folder: Path) -> Any:
    """Return transformers' processor without its part for videos, which wants torchvision."""
    from transformers import AutoTokenizer, GotOcr2ImageProcessorPil, InternVLProcessor

    class StillProcessor(InternVLProcessor):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    images, tokenizer = GotOcr2ImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return StillProcessor(images, tokenizer, image_seq_length=4, chat_template=TEMPLATE)


def _side(value: int | list[int]) -> int:
    return value if isinstance(value, int) else value[0]


def _shapes(config: Config) -> Shapes:
    text, is_tied = config["text_config"], config["tie_word_embeddings"]
    before = "language_model.model." if is_tied else "model.language_model."
    is_qwen3 = text["model_type"] == "qwen3"
    shapes = decoder_shapes({**text, "model_type": "llama"} if is_qwen3 else text, before)
    for number in range(text["num_hidden_layers"] if is_qwen3 else 0):
        attention = f"{before}layers.{number}.self_attn"
        shapes |= {f"{attention}.{name}_norm.weight": (text["head_dim"],) for name in "qk"}
    if not is_tied:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    root = "" if is_tied else "model."
    width = config["vision_config"]["hidden_size"] * round(1 / config["downsample_ratio"]) ** 2
    connector = f"{root}multi_modal_projector"
    shapes |= norm_shapes(width, f"{connector}.layer_norm")
    shapes |= linear_shapes(f"{connector}.linear_1", text["hidden_size"], width)
    shapes |= linear_shapes(f"{connector}.linear_2", text["hidden_size"], text["hidden_size"])
    return shapes | _tower_shapes(config["vision_config"], f"{root}vision_tower.")


def _tower_shapes(vision: Config, prefix: str) -> Shapes:
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], _side(vision["patch_size"])
    embeddings = f"{prefix}embeddings."
    shapes: Shapes = {
        f"{embeddings}cls_token": (1, 1, width),
        f"{embeddings}position_embeddings": (1, (_side(vision["image_size"]) // patch) ** 2 + 1, width),
        f"{embeddings}patch_embeddings.projection.weight": (width, 3, patch, patch),
        f"{embeddings}patch_embeddings.projection.bias": (width,),
    }
    if not vision.get("use_mean_pooling", True):
        shapes |= norm_shapes(width, f"{prefix}layernorm")
    has_biases = vision.get("norm_type") != "rms_norm"
    for layer in (f"{prefix}encoder.layer.{number}." for number in range(vision["num_hidden_layers"])):
        for name in ("q_proj", "k_proj", "v_proj"):
            bias = vision.get("attention_bias", False)
            shapes |= linear_shapes(f"{layer}attention.{name}", width, width, bias=bias)
        shapes |= linear_shapes(f"{layer}attention.projection_layer", width, width)
        shapes |= linear_shapes(f"{layer}mlp.fc1", inner, width) | linear_shapes(f"{layer}mlp.fc2", width, inner)
        shapes |= {f"{layer}lambda_{number}": (width,) for number in (1, 2)}
        norms = norm_shapes(width, f"{layer}layernorm_before", f"{layer}layernorm_after")
        shapes |= {name: shape for name, shape in norms.items() if has_biases or name.endswith("weight")}
        if vision.get("use_qk_norm"):
            shapes |= {f"{layer}attention.{name}_norm.weight": (width,) for name in "qk"}
    return shapes
