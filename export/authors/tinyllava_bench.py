"""TinyLLaVA's first checkpoints as their authors publish them (github.com/DLCV-BUAA/TinyLLaVABench): flat configs."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from export.authors.conversation import CURIOUS_USER, two_roles
from export.authors.towers import tower_of
from export.authors.translation import Translation, translated
from export.config import Raw

_DECODERS: Mapping[str, tuple[str, str]] = {
    "tiny_llava": ("llama", "</s>"),
    "tiny_llava_phi": ("phi", "<|endoftext|>"),
}
"""The decoder of each, and what ends an answer: conversations `v1` and `phi` (README)."""
_LAST = -1
"""Whose hidden states are read of a SigLIP, whatever a config says (multimodal_encoder/siglip_encoder.py)."""
_FEATURES: Mapping[str, str] = {"patch": "default", "cls_patch": "full"}


def open_layout(config: Raw) -> Translation:
    """Return a checkpoint whose `model_type` is tiny_llava or tiny_llava_phi.

    Raises:
        UnsupportedConfigError: A setting that is not built, or a tower that is not known.
    """
    decoder, end = _DECODERS[str(config["model_type"])]
    tower, chosen = tower_of(config), config.get("mm_vision_select_feature") or "patch"
    if chosen not in _FEATURES:
        raise UnsupportedConfigError(f"mm_vision_select_feature {chosen!r}; built are {', '.join(_FEATURES)}")
    return translated(
        config,
        decoder,
        tower,
        two_roles(end, CURIOUS_USER),
        layer=int(config.get("mm_vision_select_layer", -2)) if tower.is_clip else _LAST,
        strategy=_FEATURES[chosen] if tower.is_clip else "full",
        connector=config.get("mm_projector_type") or "linear",
    )
