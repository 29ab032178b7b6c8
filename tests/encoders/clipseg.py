"""CLIPSeg's towers: `clipseg`, whose processor makes images of another size than its config says."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import encoder_files as files

TEXT = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2}
VISION = {"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 3}
REFUSED = [
    ({"text_config": {"hidden_act": "mish"}}, "'mish'"),
    ({"vision_config": {"num_attention_heads": 7}}, "hidden_size 40 is not a multiple of num_attention_heads 7"),
]


def geometries() -> list[files.Config]:
    """Return two odd ones; the second has its decoder beside the towers, as published checkpoints do."""
    words = {"vocab_size": 514, "max_position_embeddings": 48, "eos_token_id": 513, "pad_token_id": 513}
    vision = VISION | {"image_size": 36, "patch_size": 12}
    first = {"architectures": ["CLIPSegModel"], "projection_dim": 20, "vision_config": vision}
    first["text_config"] = TEXT | words
    second = {"architectures": ["CLIPSegForImageSegmentation"], "projection_dim": 24, "reduce_dim": 8}
    second |= {"extract_layers": [0, 1, 2], "vision_config": VISION | {"image_size": 50, "patch_size": 10}}
    second["text_config"] = TEXT | words | {"eos_token_id": 2}
    return [{"model_type": "clipseg", **each} for each in (first, second)]


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a stretch to more patches a side, and CLIP's tokenizer."""
    vision = config["vision_config"]
    side = vision["image_size"] + 2 * vision["patch_size"]
    files.save_images(folder, "ViTImageProcessor", size=files.square(side), resample=3)
    checkpoints.save_clip_tokenizer(folder, 48)


def expected(model, inputs):
    """Return what the towers make of images and texts."""
    return files.towers(getattr(model, "clip", model), inputs)
