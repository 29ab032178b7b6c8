"""Tiny LLaVA-NeXT checkpoints: grids of one to six tiles, a CLIP and a SigLIP tower, Llama and Mistral."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import (
    CLIP_MEAN,
    CLIP_STD,
    CONTROL,
    CONTROL_IDS,
    NAMED,
    RESCALING,
    TEMPLATE,
    TILE_PX,
    llava_config,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from weight_shapes import Config, llava_shapes

GRIDS = ((1, 1), (1, 3), (2, 1), (2, 2), (3, 2))


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    grouped = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    return {
        "clip-llama-shared-key": any_resolution("clip", "llama"),
        "siglip-mistral-of-two-layers": any_resolution(
            "siglip",
            "mistral",
            {**grouped, "sliding_window": None, "tie_word_embeddings": False},
            tie_word_embeddings=False,
            vision_feature_select_strategy="full",
            vision_feature_layer=[-3, -1],
        ),
    }


def any_resolution(tower: str, text: str, words: Config | None = None, **top: Any) -> Config:
    """Return a LLaVA config with grids; `words` are of its decoder."""
    config = llava_config(tower, text, **top)
    config["text_config"] |= words or {}
    named = {"architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next"}
    return {**config, **named, "image_grid_pinpoints": pinpoints()}


def pinpoints() -> list[list[int]]:
    return [[rows * TILE_PX, cols * TILE_PX] for rows, cols in GRIDS]


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32; older names of weights."""
    is_clip = config["vision_config"]["model_type"] == "clip_vision_model"
    side = {"height": TILE_PX, "width": TILE_PX}
    of_clip = {"size": {"shortest_edge": TILE_PX}, "crop_size": side, "do_center_crop": True}
    settings = {
        "patch_size": config["vision_config"]["patch_size"],
        "num_additional_image_tokens": int(is_clip),
    }
    save_any_resolution(
        folder,
        config,
        "LlavaNext",
        of_clip if is_clip else {"size": side, "crop_size": side, "do_center_crop": False},
        **settings,
    )


def save_any_resolution(folder: Path, config: Config, kind: str, images: Config, **settings: Any) -> None:
    """Write a checkpoint whose processor is of that kind; `images` and `settings` are its own."""
    shapes = llava_shapes(config) | {"image_newline": (config["text_config"]["hidden_size"],)}
    save_model(folder, config, shapes)
    write_json(folder / "generation_config.json", CONTROL_IDS)
    shared = {
        "image_processor_type": f"{kind}ImageProcessor",
        "image_grid_pinpoints": pinpoints(),
        "do_resize": True,
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        **RESCALING,
    }
    strategy = config["vision_feature_select_strategy"]
    named = {"image_token": "<image>", "vision_feature_select_strategy": strategy, **settings}
    save_processor(folder, f"{kind}Processor", {**shared, **images}, **named)
    save_byte_tokenizer(folder, CONTROL, **NAMED)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
