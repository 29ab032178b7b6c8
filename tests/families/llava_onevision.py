"""Tiny LLaVA-OneVision checkpoints: pictures of at most as many patches as one or two tiles, SigLIP and Qwen2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import TILE_PX
from family_llava_next import any_resolution, save_any_resolution
from weight_shapes import Config


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    grouped = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 56}
    return {
        "tied-pictures-of-two-tiles": _config("qwen2", vision_aspect_ratio="anyres_max_2"),
        "llama-untied-pictures-of-one-tile": _config(
            "llama", grouped, vision_aspect_ratio="anyres_max_1", vision_feature_layer=-2
        ),
    }


def _config(text: str, words: Config | None = None, **top: Any) -> Config:
    named = {"architectures": ["LlavaOnevisionForConditionalGeneration"], "model_type": "llava_onevision"}
    chosen = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", **top}
    # the token of videos is none of the tokenizer's: none is ever written
    return {**any_resolution("siglip", text, words, **chosen), **named, "video_token_index": 3}


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32; older names of weights."""
    size = {"height": TILE_PX, "width": TILE_PX}
    num_patches = (TILE_PX // config["vision_config"]["patch_size"]) ** 2
    told = {"num_image_tokens": num_patches, "vision_aspect_ratio": config["vision_aspect_ratio"]}
    save_any_resolution(folder, config, "LlavaOnevision", {"size": size}, **told)


def processor(folder: Path) -> Any:
    """Return transformers' processor without its part for videos, given the images of a message together."""
    import json

    from transformers import AutoTokenizer, LlavaOnevisionImageProcessorPil, LlavaOnevisionProcessor

    class StillProcessor(LlavaOnevisionProcessor):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

        def __call__(self, images: Any = None, **options: Any) -> Any:
            return super().__call__(images=None if images is None else [images], **options)

    told = json.loads((folder / "processor_config.json").read_text())
    names = ("num_image_tokens", "vision_feature_select_strategy", "vision_aspect_ratio")
    images, tokenizer = LlavaOnevisionImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    template = (folder / "chat_template.jinja").read_text()
    return StillProcessor(images, tokenizer, chat_template=template, **{name: told[name] for name in names})
