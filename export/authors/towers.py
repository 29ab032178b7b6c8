"""The towers that LLaVA's kind of checkpoint names by their repository: sizes and preprocessing of the usual ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bundle.errors import UnsupportedConfigError
from export.checkpoint import TOWER_FOLDER, TOWER_KEY
from export.config import Raw
from export.image_processors.image_processor import CLIP_MEAN, CLIP_STD, HALF

_CLIP, _SIGLIP = "clip_vision_model", "siglip_vision_model"
_KINDS = {"clip": _CLIP, "siglip": _SIGLIP, _CLIP: _CLIP, _SIGLIP: _SIGLIP}
"""`model_type` of a tower's own repository, whole models and towers alone, to what a LLaVA's config calls it."""


@dataclass(frozen=True)
class Tower:
    """A tower's part of a config.

    Attributes:
        config: Its sizes, with its `model_type`.
        images: Settings of its image processor, which name the class.
    """

    config: Raw
    images: Raw

    @property
    def is_clip(self) -> bool:
        """Whether a class token stands before patches."""
        return bool(self.config["model_type"] == _CLIP)


def _clip_large(side_px: int) -> Tower:
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    square = {"height": side_px, "width": side_px}
    return Tower(
        {"model_type": _CLIP, **sizes, "image_size": side_px, "patch_size": 14},
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": side_px},
            "crop_size": square,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        },
    )


_SIGLIP_LARGE = Tower(
    {
        "model_type": _SIGLIP,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
    {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 384, "width": 384},
        "image_mean": HALF,
        "image_std": HALF,
    },
)
TOWERS: Mapping[str, Tower] = {
    "clip-vit-large-patch14": _clip_large(224),
    "clip-vit-large-patch14-336": _clip_large(336),
    "siglip-so400m-patch14-384": _SIGLIP_LARGE,
    "TinyLLaVA-3.1B-SigLIP": _SIGLIP_LARGE,
    "TinyLLaVA-1.5B-SigLIP": _SIGLIP_LARGE,
}
"""By the last part of the name: openai's CLIP and google's SigLIP as their repositories have them, and TinyLLaVA's, a
SigLIP that was trained further."""


def tower_of(config: Raw) -> Tower:
    """Return the tower of a checkpoint: that of the folder in it, or of a usual name.

    Raises:
        UnsupportedConfigError: Neither is known, or the folder's is no CLIP and no SigLIP.
    """
    found: Mapping[str, Any] | None = config.get(TOWER_KEY)
    if found is not None:
        return _read(found["config"], found["images"])
    name = str(config.get("mm_vision_tower"))
    known = TOWERS.get(name.rstrip("/").rsplit("/", 1)[-1])
    if known is None:
        raise UnsupportedConfigError(
            f"mm_vision_tower {name!r}: its sizes are not in this config; put the tower's config.json, "
            f"preprocessor_config.json and weights into a folder {TOWER_FOLDER} of the checkpoint. Known by name are "
            f"{', '.join(TOWERS)}"
        )
    return known


def _read(config: Raw, images: Raw) -> Tower:
    kind = str(config.get("model_type"))
    if kind not in _KINDS:
        raise UnsupportedConfigError(
            f"{TOWER_FOLDER}/config.json: model_type {kind!r}; the towers built are {', '.join(_KINDS)}"
        )
    sizes = config.get("vision_config", config)
    return Tower({**sizes, "model_type": _KINDS[kind]}, images)
