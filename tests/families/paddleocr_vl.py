"""Tiny PaddleOCR-VL checkpoints: SigLIP's layers with angles, positions resampled edge on edge, ERNIE's decoder."""

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
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, norm_shapes, tower_shapes

IMAGE, START, END = "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_START|>", "<|IMAGE_END|>"
CONTROL = [PAD, BOS, EOS, IMAGE, START, END]
TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "three-heads-tied": _config(),
        "untied-biases": _config(
            {"use_bias": True, "num_attention_heads": 4, "num_key_value_heads": 2},
            {"num_attention_heads": 1, "patch_size": 8, "image_size": 24, "hidden_size": 28},
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    words = {
        "model_type": "paddleocr_vl_text",
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 256 + len(CONTROL) + 2,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 800.0, "mrope_section": [2, 3, 3]},
        **CONTROL_IDS,
        **(text or {}),
    }
    tower = {
        "model_type": "paddleocr_vl_vision",
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "patch_size": 4,
        "image_size": 20,
        **(vision or {}),
    }
    return {
        "architectures": ["PaddleOCRVLForConditionalGeneration"],
        "model_type": "paddleocr_vl",
        "image_token_id": 259,
        "video_token_id": 262,
        "vision_start_token_id": 260,
        "vision_end_token_id": 261,
        "tie_word_embeddings": True,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    images = {
        "image_processor_type": "PaddleOCRVLImageProcessor",
        "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
        "patch_size": config["vision_config"]["patch_size"],
        "temporal_patch_size": 1,
        "merge_size": 2,
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_resize": True,
        **RESCALING,
    }
    save_processor(folder, "PaddleOCRVLProcessor", images)
    tokens = {"pad_token": PAD, "eos_token": EOS, "extra_special_tokens": {"image_token": IMAGE}}
    save_byte_tokenizer(folder, CONTROL, **tokens)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _shapes(config: Config) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    biases = {"attention_bias": text.get("use_bias", False), "mlp_bias": text.get("use_bias", False)}
    shapes = decoder_shapes({**text, **biases, "model_type": "llama"}, "model.")
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    width = vision["hidden_size"]
    shapes |= tower_shapes(vision, "visual.vision_model.") | norm_shapes(width, "mlp_AR.pre_norm")
    shapes |= linear_shapes("mlp_AR.linear_1", 4 * width, 4 * width)
    return shapes | linear_shapes("mlp_AR.linear_2", text["hidden_size"], 4 * width)
