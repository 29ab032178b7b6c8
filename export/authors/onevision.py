"""LLaVA-OneVision as its authors publish it (github.com/LLaVA-VL/LLaVA-NeXT): SigLIP before Qwen2, flat configs."""

from __future__ import annotations

import re

from bundle.errors import UnsupportedConfigError
from export.authors.conversation import chat_ml
from export.authors.towers import tower_of
from export.authors.translation import Translation, grids_of, translated
from export.config import Raw, require

_CONVERSATION = chat_ml("You are a helpful assistant.", "\n")
"""`qwen_1_5`, of every checkpoint on Qwen2."""
_LAYER = -2
"""Whose hidden states are read: the code deletes the tower's last layer, whatever a config says (siglip_encoder.py)."""
_BOUNDED = re.compile(r"anyres_max_\d+")
_OF_VIDEOS = (("mm_spatial_pool_mode", "bilinear"), ("mm_newline_position", "one_token"))
"""How frames are scaled down, and where line ends stand among them (llava_arch.py)."""


def open_layout(config: Raw) -> Translation:
    """Return a checkpoint whose `model_type` is llava_qwen, or llava with the class `LlavaQwenForCausalLM`.

    Raises:
        UnsupportedConfigError: A setting that is not built, or a tower that is not known.
    """
    require(config, [("add_faster_video", False)])
    tower, how = tower_of(config), str(config.get("image_aspect_ratio"))
    if tower.is_clip:
        raise UnsupportedConfigError("mm_vision_tower: of LLaVA-OneVision's towers SigLIP is built")
    is_bounded = _BOUNDED.fullmatch(how) is not None
    whole = translated(
        {**config, "image_aspect_ratio": "anyres"} if is_bounded else config,
        "qwen2",
        tower,
        _CONVERSATION,
        layer=_LAYER,
        strategy="full",
        connector=config.get("mm_projector_type") or "linear",
    )
    if not is_bounded:
        return whole
    require(config, _OF_VIDEOS)
    grids = grids_of(config.get("image_grid_pinpoints"), int(tower.config["image_size"]))
    images = {**tower.images, "image_processor_type": "LlavaOnevisionImageProcessor", "image_grid_pinpoints": grids}
    named = {"model_type": "llava_onevision", "vision_aspect_ratio": how}
    return Translation({**whole.config, **named}, images, _CONVERSATION, has_tiles=True)
