"""Configs of the DeepSeek-OCR models in their authors' keys, as transformers' have them."""

from __future__ import annotations

from typing import Any

from export.config import Raw, sub_config

_LAYERS = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
"""Keys of a tower in `vision_config.width`, and what they are called in transformers."""


def with_language(config: Raw, kind: str) -> dict[str, Any]:
    """Return a config whose decoder's part, `language_config` of the authors, is `text_config`, of a kind."""
    stated = sub_config(config, "text_config" if config.get("text_config") else "language_config")
    return {**config, "text_config": {**stated, "model_type": kind}}


def towers_of(vision: Raw) -> dict[str, Raw]:
    """Return the authors' `vision_config` as that of SAM's tower and of the layers on what it gives, CLIP's.

    The authors' code makes CLIP's feed-forwards four times as wide whatever `mlp_ratio` says.
    """
    clip = dict(tower_of(vision, "clip-l-14-224"))
    if "hidden_size" in clip:
        clip = {"intermediate_size": 4 * clip["hidden_size"], **clip}
    return {"sam_config": tower_of(vision, "sam_vit_b"), "encoder_config": clip}


def tower_of(vision: Raw, name: str) -> Raw:
    """Return one of the towers in the authors' `vision_config`; nothing where it is not there."""
    tower = sub_config(vision, "width").get(name) or {}
    return {_LAYERS.get(key, key): value for key, value in tower.items()}
