"""Tiny LLaVA-NeXT-Video checkpoints: LLaVA-NeXT's with tokens of videos, frames pooled by means and by maxima."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from checkpoints import CLIP_MEAN, CLIP_STD, CONTROL, NAMED, RESCALING, TILE_PX, save_byte_tokenizer
from family_llava_next import any_resolution, save_any_resolution
from weight_shapes import Config

VIDEO = "<video>"
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}:"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% elif part.type == 'video' %}<video>"
    "{% else %} {{ part.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "clip-llama-means": _config("clip", "llama", {}, spatial_pool_mode="average"),
        "siglip-qwen2-maxima-of-two-layers": _config(
            "siglip",
            "qwen2",
            {},
            spatial_pool_mode="max",
            vision_feature_select_strategy="full",
            vision_feature_layer=[-3, -1],
        ),
    }


def _config(tower: str, text: str, words: Config, **top: Any) -> Config:
    config = any_resolution(tower, text, {"vocab_size": 256 + len(CONTROL) + 3, **words}, **top)
    named = {"architectures": ["LlavaNextVideoForConditionalGeneration"], "model_type": "llava_next_video"}
    return {**config, **named, "video_token_index": 256 + len(CONTROL), "spatial_pool_stride": 2}


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32; older names of weights."""
    is_clip = config["vision_config"]["model_type"] == "clip_vision_model"
    side = {"height": TILE_PX, "width": TILE_PX}
    of_clip = {"size": {"shortest_edge": TILE_PX}, "crop_size": side, "do_center_crop": True}
    images = of_clip if is_clip else {"size": side, "crop_size": side, "do_center_crop": False}
    settings = {
        "patch_size": config["vision_config"]["patch_size"],
        "num_additional_image_tokens": int(is_clip),
        "video_token": VIDEO,
    }
    save_any_resolution(folder, config, "LlavaNext", images, **settings)
    path = folder / "processor_config.json"
    found = json.loads(path.read_text())
    frames = {**images, "resample": 3, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "do_resize": True, **RESCALING}
    found |= {
        "processor_class": "LlavaNextVideoProcessor",
        "video_processor": {"video_processor_type": "LlavaNextVideoVideoProcessor", **frames},
    }
    path.write_text(json.dumps(found))
    save_byte_tokenizer(folder, [*CONTROL, VIDEO], **NAMED)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def processor(folder: Path) -> Any:
    """Return transformers' processor on Pillow, without the part for videos, which wants torchvision."""
    from transformers import AutoTokenizer
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    from transformers.models.llava_next_video.processing_llava_next_video import LlavaNextVideoProcessor

    class StillProcessor(LlavaNextVideoProcessor):  # type: ignore[misc]
        def check_argument_for_proper_class(self, name: str, given: Any) -> Any:
            """Let the part for videos be none."""
            return type(given) if given is None else super().check_argument_for_proper_class(name, given)

    told = json.loads((folder / "processor_config.json").read_text())
    names = ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy")
    return StillProcessor(
        None,
        LlavaNextImageProcessorPil.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        chat_template=TEMPLATE,
        **{name: told[name] for name in names},
    )


class Videos:
    """In the place of transformers' processor of videos, which wants torchvision: frames by CLIP's on Pillow."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPImageProcessorPil

        told = json.loads((folder / "processor_config.json").read_text())["video_processor"]
        self._frames = CLIPImageProcessorPil(**{key: each for key, each in told.items() if "type" not in key})

    def __call__(self, videos: list[list[Any]], **_: Any) -> dict[str, Any]:
        """Return pixels [1, frames, 3, height, width] of one video."""
        (frames,) = videos
        return {"pixel_values_videos": self._frames(images=frames, return_tensors="pt")["pixel_values"][None]}
