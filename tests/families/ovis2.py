"""Tiny Ovis2 checkpoints: squares of patches as mixtures of visual words, marks that are visual words themselves."""

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

MARKS = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
CONTROL = [PAD, BOS, EOS, "<IMG_ATOM>", *MARKS]
# as published: what it writes for an image is no token
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<image>\n' }}{% elif content['type'] == 'text' %}{{ content['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{{'<end_of_utterance>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "squares-of-four-tied-in-tiles": _config(),
        "single-patches-untied-biases": _config(
            {"hidden_size": 44, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
            {"hidden_stride": 1, "image_size": 12, "qkv_bias": True, "mlp_bias": True, "vocab_size": 39},
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    words = {
        "model_type": "qwen2",
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "vocab_size": 256 + len(CONTROL) + 3,
        "max_position_embeddings": 512,
        **CONTROL_IDS,
        **(text or {}),
    }
    tower = {
        "model_type": "ovis2_vision",
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "patch_size": 4,
        "image_size": 16,
        "hidden_stride": 2,
        "vocab_size": 60,
        **(vision or {}),
    }
    return {
        "architectures": ["Ovis2ForConditionalGeneration"],
        "model_type": "ovis2",
        "image_token_id": 259,
        "visual_indicator_token_ids": [260, 261, 262, 263, 264],
        "vocab_size": words["vocab_size"],
        "hidden_size": words["hidden_size"],
        "tie_word_embeddings": True,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    vision = config["vision_config"]
    images = {
        "image_processor_type": "Ovis2ImageProcessor",
        "size": {"height": vision["image_size"], "width": vision["image_size"]},
        "crop_to_patches": config["tie_word_embeddings"],
        "max_patches": 7,
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_resize": True,
        **RESCALING,
    }
    num_tokens = (vision["image_size"] // vision["patch_size"] // vision["hidden_stride"]) ** 2
    save_processor(folder, "Ovis2Processor", images, image_seq_length=num_tokens)
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, eos_token=EOS)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _shapes(config: Config) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    shapes = decoder_shapes(text, "model.language_model.")
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    num_words, width = vision["vocab_size"] - len(MARKS), vision["hidden_size"] * vision["hidden_stride"] ** 2
    shapes["model.visual_embeddings_table.weight"] = (vision["vocab_size"], text["hidden_size"])
    shapes |= linear_shapes("model.vision_tower.head_linear", num_words, width, bias=False)
    shapes |= norm_shapes(num_words, "model.vision_tower.head_norm")
    return shapes | _tower_shapes(vision, "model.vision_tower.transformer.")


def _tower_shapes(vision: Config, prefix: str) -> Shapes:
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    shapes: Shapes = {
        f"{prefix}embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{prefix}embeddings.patch_embedding.bias": (width,),
        f"{prefix}embeddings.position_embedding.weight": ((vision["image_size"] // patch) ** 2, width),
        f"{prefix}embeddings.rms_norm.weight": (width,),
        f"{prefix}rms_norm.weight": (width,),
    }
    biases, inner_biases = vision.get("qkv_bias", False), vision.get("mlp_bias", False)
    for layer in (f"{prefix}encoder.layers.{number}." for number in range(vision["num_hidden_layers"])):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear_shapes(f"{layer}attention.{name}", width, width, bias=biases)
        for name in ("gate_proj", "up_proj"):
            shapes |= linear_shapes(f"{layer}ffn.{name}", inner, width, bias=inner_biases)
        shapes |= linear_shapes(f"{layer}ffn.down_proj", width, inner, bias=inner_biases)
        shapes |= {f"{layer}rms_norm{number}.weight": (width,) for number in (1, 2)}
    return shapes
