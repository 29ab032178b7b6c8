"""Bunny as its authors publish it (github.com/BAAI-DCAI/Bunny): SigLIP before Phi or Qwen, flat configs as LLaVA's."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from export.authors.conversation import CURIOUS_USER, two_roles
from export.authors.towers import tower_of
from export.authors.translation import Translation, translated
from export.config import Raw, require

_DECODERS: Mapping[str, tuple[str, str]] = {
    "bunny-phi": ("phi", "<|endoftext|>"),
    "bunny-qwen2": ("qwen2", "<|endoftext|>"),
    "bunny-llama": ("llama", "<|end_of_text|>"),
}
"""The decoder of each, and what ends an answer (conversation.py)."""
_LAYER = -2
"""Whose hidden states are read, whatever a config says (multimodal_encoder/siglip/siglip_encoder.py)."""


def open_layout(config: Raw) -> Translation:
    """Return a checkpoint whose `model_type` is bunny-phi, bunny-qwen2 or bunny-llama.

    Raises:
        UnsupportedConfigError: A setting that is not built, or a tower that is not known.
    """
    require(config, [("use_s2", False)])
    decoder, end = _DECODERS[str(config["model_type"])]
    tower = tower_of(config)
    if tower.is_clip:
        raise UnsupportedConfigError("mm_vision_tower: of Bunny's towers SigLIP is built")
    return translated(
        config,
        decoder,
        tower,
        two_roles(end, CURIOUS_USER),
        layer=_LAYER,
        strategy="full",
        connector=config.get("mm_projector_type") or "mlp2x_gelu",
    )
