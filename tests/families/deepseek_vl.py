"""Tiny DeepSeek-VL checkpoints: padded images, SigLIP to its last norm, tied and untied Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import (
    CONTROL,
    CONTROL_IDS,
    IMAGE_TOKEN_ID,
    NAMED,
    RESCALING,
    TEMPLATE,
    llava_config,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, tower_shapes


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "tied-shared-key": config("DeepseekVL", "deepseek_vl"),
        "untied-larger-patches-no-head": config(
            "DeepseekVL",
            "deepseek_vl",
            {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": False},
            {"patch_size": 16, "hidden_size": 36, "num_attention_heads": 3, "vision_use_head": False},
            tie_word_embeddings=False,
        ),
    }


def config(kind: str, model_type: str, text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    """Return the config of a DeepSeek-VL of a class; `text` and `vision` override its parts."""
    whole = llava_config("siglip", "llama")
    return {
        "architectures": [f"{kind}ForConditionalGeneration"],
        "model_type": model_type,
        "image_token_id": IMAGE_TOKEN_ID,
        "tie_word_embeddings": True,
        "text_config": whole["text_config"] | (text or {}),
        "vision_config": whole["vision_config"] | (vision or {}),
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, shapes(config))
    side = config["vision_config"]["image_size"]
    colours = {"image_mean": [0.2, 0.5, 0.7], "image_std": [0.5, 0.4, 0.5]}
    save_beside_weights(folder, config, "DeepseekVL", size={"height": side, "width": side}, **colours)


def save_beside_weights(folder: Path, config: Config, kind: str, **images: Any) -> None:
    """Write all files but config and weights."""
    write_json(folder / "generation_config.json", CONTROL_IDS)
    shared = {"image_processor_type": f"{kind}ImageProcessor", "min_size": 3, "resample": 3, "do_pad": True}
    vision = config["vision_config"]
    num_tokens = (vision["image_size"] // vision["patch_size"]) ** 2
    settings = {**shared, "do_resize": True, **RESCALING, **images}
    save_processor(folder, f"{kind}Processor", settings, num_image_tokens=num_tokens)
    save_byte_tokenizer(folder, CONTROL, **NAMED, extra_special_tokens={"image_token": "<image>"})
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def shapes(config: Config) -> Shapes:
    """Name every weight but those of a second tower."""
    text, vision = config["text_config"], config["vision_config"]
    found = decoder_shapes(text, "model.language_model.") | tower_shapes(vision, "model.vision_model.")
    if not vision.get("vision_use_head", True):
        found = {name: shape for name, shape in found.items() if ".head." not in name}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    found |= linear_shapes("model.aligner.linear1", text["hidden_size"], vision["hidden_size"])
    return found | linear_shapes("model.aligner.linear2", text["hidden_size"], text["hidden_size"])
