"""Tiny Gemma 3 checkpoints: images that see themselves past short windows, angles by kind of layer, pan and scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import (
    BOS,
    CONTROL_IDS,
    EOS,
    NAMED,
    PAD,
    RESCALING,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from safetensors.numpy import load_file, save_file
from weight_shapes import Config, Shapes, decoder_shapes, tower_shapes

START, END, IMAGE = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
CONTROL = [PAD, BOS, EOS, START, END, IMAGE, "<start_of_turn>"]
_TABLE_SCALE = 0.04
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<start_of_image>{% else %}{{ part.text | trim }}"
    "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n"
    "{% endif %}"
)


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "window-shorter-than-an-image-tied": _config(
            {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
        ),
        "old-spelling-untied-biases-pan-and-scan": _config(
            {
                "sliding_window_pattern": 2,
                "sliding_window": 40,
                "attention_bias": True,
                "rope_theta": 5000.0,
                "rope_local_base_freq": 300.0,
                "rope_scaling": {"rope_type": "linear", "factor": 4.0},
                "query_pre_attn_scalar": 11,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
            },
            {"vision_use_head": True, "image_size": 24, "hidden_size": 30},
            mm_tokens_per_image=9,
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    words = {
        "model_type": "gemma3_text",
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 24,
        "vocab_size": 256 + len(CONTROL) + 3,
        "max_position_embeddings": 512,
        "query_pre_attn_scalar": 20,
        "sliding_window": 6,
        **CONTROL_IDS,
        **(text or {}),
    }
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 4,
        "vision_use_head": False,
        **(vision or {}),
    }
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "boi_token_index": 259,
        "eoi_token_index": 260,
        "image_token_index": 261,
        "mm_tokens_per_image": 16,
        "tie_word_embeddings": True,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32; older names of weights where the table is tied."""
    save_model(folder, config, _shapes(config))
    write_as_gemma(folder / "model.safetensors", ("language_model.", "mm_soft_emb_norm"))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    side, pans = config["vision_config"]["image_size"], not config["tie_word_embeddings"]
    images = {
        "image_processor_type": "Gemma3ImageProcessor",
        "size": {"height": side, "width": side},
        "resample": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_resize": True,
        "do_pan_and_scan": pans or None,
        "pan_and_scan_min_crop_size": 20 if pans else None,
        "pan_and_scan_max_num_crops": 3 if pans else None,
        "pan_and_scan_min_ratio_to_activate": 1.2 if pans else None,
        **RESCALING,
    }
    save_processor(folder, "Gemma3Processor", images, image_seq_length=config["mm_tokens_per_image"])
    named = {"boi_token": START, "eoi_token": END, "image_token": IMAGE}
    save_byte_tokenizer(folder, CONTROL, extra_special_tokens=named, **NAMED)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def processor(folder: Path) -> Any:
    """Return transformers' processor, asked for what the files of its images say: it takes that of a caller alone."""
    from transformers import AutoProcessor

    made = AutoProcessor.from_pretrained(folder, backend="pil")
    stated = {key: getattr(made.image_processor, key) for key in made.images_kwargs}
    made.images_kwargs = {**made.images_kwargs, **{key: value for key, value in stated.items() if value is not None}}
    return made


def write_as_gemma(path: Path, parts: tuple[str, ...]) -> None:
    """Rewrite parts of a checkpoint: norms around 0, for they multiply by 1 + w; small tables, for tokens are scaled.

    Tied, a table of usual size would say the token that it read, whatever the layers make of it.
    """
    weights = load_file(path)
    for name in [name for name in weights if any(part in name for part in parts)]:
        if name.endswith("norm.weight"):
            weights[name] -= 1
        elif name.endswith("embed_tokens.weight"):
            weights[name] *= _TABLE_SCALE
    save_file(weights, path, {"format": "pt"})


def four_norms(text: Config, before: str) -> Shapes:
    """Name the norms that layers of Gemma 2 have more than Llama's."""
    names = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
    layers = range(text["num_hidden_layers"])
    return {f"{before}layers.{layer}.{name}.weight": (text["hidden_size"],) for layer in layers for name in names}


def _shapes(config: Config) -> Shapes:
    text, vision, is_tied = config["text_config"], config["vision_config"], config["tie_word_embeddings"]
    before, root = ("language_model.model.", "") if is_tied else ("model.language_model.", "model.")
    shapes = decoder_shapes(text, before) | four_norms(text, before)
    for layer in range(text["num_hidden_layers"]):
        shapes |= {f"{before}layers.{layer}.self_attn.{name}_norm.weight": (text["head_dim"],) for name in "qk"}
    if not is_tied:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    shapes[f"{root}multi_modal_projector.mm_input_projection_weight"] = (vision["hidden_size"], text["hidden_size"])
    shapes[f"{root}multi_modal_projector.mm_soft_emb_norm.weight"] = (vision["hidden_size"],)
    tower = tower_shapes(vision, f"{root}vision_tower.vision_model." if is_tied else f"{root}vision_tower.")
    return shapes | {name: shape for name, shape in tower.items() if vision["vision_use_head"] or ".head." not in name}
