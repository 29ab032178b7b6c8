"""TinyLLaVA as its authors publish it (github.com/TinyLLaVA/TinyLLaVA_Factory): parts named by a connector's type."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from export.authors.conversation import CURIOUS_USER, two_roles
from export.authors.towers import TOWERS, Tower
from export.authors.translation import Translation, padded
from export.config import Raw, require, sub_config

_ENDS: Mapping[str, str] = {
    "phi": "<|endoftext|>",
    "stablelm": "<|endoftext|>",
    "qwen2": "<|endoftext|>",
    "llama": "</s>",
}
"""What ends an answer, by the decoder's `model_type` (data/template/)."""
_OF_INSTRUCT = "<|im_end|>"
_FEATURES: Mapping[str, str] = {"patch": "default", "cls_patch": "full"}


def open_layout(config: Raw) -> Translation:
    """Return a checkpoint whose `model_type` is tinyllava.

    Raises:
        UnsupportedConfigError: A setting that is not built, or a tower that is not known.
    """
    require(config, [("quantization_config", None)])
    text, chosen = sub_config(config, "text_config"), config.get("vision_feature_select_strategy", "patch")
    kind, how = str(text.get("model_type")), config.get("image_aspect_ratio") or "square"
    if kind not in _ENDS or chosen not in _FEATURES or how not in ("square", "pad"):
        raise UnsupportedConfigError(
            f"text_config.model_type {kind!r}, vision_feature_select_strategy {chosen!r}, image_aspect_ratio {how!r}: "
            f"built are {', '.join(_ENDS)}, {', '.join(_FEATURES)}, and square and pad"
        )
    tower = _tower(config)
    whole = {
        "model_type": "llava",
        "text_config": text,
        "vision_config": tower.config,
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        "vision_feature_layer": config.get("vision_feature_layer", -2),
        "vision_feature_select_strategy": _FEATURES[chosen],
        "mm_projector_type": config.get("connector_type"),
    }
    of_instruct = kind == "qwen2" and "instruct" in str(config.get("llm_model_name_or_path", "")).lower()
    end = _OF_INSTRUCT if of_instruct else _ENDS[kind]
    images = padded(tower.images) if how == "pad" else tower.images
    # the decoder is transformers' whole PhiForCausalLM
    return Translation(whole, images, two_roles(end, CURIOUS_USER, gathers_images=True), has_head_bias=kind == "phi")


def _tower(config: Raw) -> Tower:
    """Return the tower: sizes of the config, and the image processor of the repository that it names."""
    sizes = sub_config(config, "vision_config")
    name = (
        str(config.get("vision_model_name_or_path") or sizes.get("model_name_or_path")).rstrip("/").rsplit("/", 1)[-1]
    )
    if name not in TOWERS:
        raise UnsupportedConfigError(
            f"vision_model_name_or_path {name!r}: how it prepares images is not known; known are {', '.join(TOWERS)}"
        )
    return Tower({**TOWERS[name].config, **sizes}, TOWERS[name].images)
