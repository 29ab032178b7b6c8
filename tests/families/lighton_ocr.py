"""Tiny LightOnOCR checkpoints: Pixtral's tower, whose odd patches no token shows, before Qwen3's decoder."""

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
from weight_shapes import Config, Shapes, decoder_shapes, merged_projector_shapes, pixtral_shapes

IMAGE, BREAK, END = "<|image_pad|>", "<|vision_pad|>", "<|vision_end|>"
CONTROL = [PAD, BOS, EOS, IMAGE, BREAK, END]
TEMPLATE = (
    "<|im_start|>system<|im_end|>\n{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<|image_pad|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "tied-three-heads-patches-in-no-square": _config(),
        "untied-whole-squares": _config(
            {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
            {"num_attention_heads": 1, "patch_size": 4, "hidden_size": 28},
            spatial_merge_size=3,
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    words = {
        "model_type": "qwen3",
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 256 + len(CONTROL) + 2,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 800.0},
        **CONTROL_IDS,
        **(text or {}),
    }
    tower = {
        "model_type": "pixtral",
        "hidden_size": 36,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "patch_size": 6,
        "image_size": 60,
        "hidden_act": "silu",
        "rope_theta": 10000,
        **(vision or {}),
    }
    return {
        "architectures": ["LightOnOcrForConditionalGeneration"],
        "model_type": "lighton_ocr",
        "image_token_id": 259,
        "spatial_merge_size": 2,
        "tie_word_embeddings": True,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    patch_px, merged = config["vision_config"]["patch_size"], config["spatial_merge_size"]
    images = {
        "image_processor_type": "PixtralImageProcessorFast",
        "size": {"longest_edge": 62},
        "patch_size": patch_px if config["tie_word_embeddings"] else patch_px * merged,
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_resize": True,
        **RESCALING,
    }
    save_processor(folder, "LightOnOcrProcessor", images, patch_size=patch_px, spatial_merge_size=merged)
    names = {"image_token": IMAGE, "image_break_token": BREAK, "image_end_token": END}
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, eos_token=EOS, extra_special_tokens=names)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _shapes(config: Config) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    prefix = "model.language_model."
    shapes = decoder_shapes(text, prefix) | pixtral_shapes(vision, "model.vision_encoder.")
    for number in range(text["num_hidden_layers"]):
        shapes |= {f"{prefix}layers.{number}.self_attn.{name}_norm.weight": (text["head_dim"],) for name in "qk"}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    return shapes | merged_projector_shapes(config, "model.vision_projection.")
