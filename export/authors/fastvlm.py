"""FastVLM as its authors publish it (github.com/apple/ml-fastvlm): FastViTHD before Qwen2, a flat config as LLaVA's."""

from __future__ import annotations

import re
from typing import Any

from bundle.errors import UnsupportedConfigError
from export.authors.conversation import chat_ml
from export.authors.towers import tower_of
from export.authors.translation import Translation, decoder_part, padded, translated
from export.config import Raw, require

_NAME = re.compile(r"mobileclip_l_(\d+)")
"""What `mm_vision_tower` calls FastViTHD, and the side of its images (multimodal_encoder/mobileclip_encoder.py)."""
_PATCH_PX = 64
TOWER: dict[str, Any] = {
    "model_type": "timm_wrapper",
    "architecture": "fastvit_mci3",
    "hidden_size": 3072,
    "model_args": {"inference_mode": True},
}
"""FastViTHD by timm's name, as transformers' configs have it."""
_CONVERSATION = chat_ml("You are a helpful assistant.", "\n")
"""`qwen_2`, the one of `predict.py`."""
_RENAMED_PARTS = (
    "stages.0.blocks",
    "stages.1.downsample",
    "stages.1.blocks",
    "stages.2.downsample",
    "stages.2.blocks",
    "stages.3.downsample",
    "stages.3.pos_emb",
    "stages.3.blocks",
    "stages.4.downsample",
    "stages.4.pos_emb",
    "stages.4.blocks",
)
"""What the parts of `network` are to timm, in order (multimodal_encoder/mobileclip/mci.py)."""
_TIMM = "model.vision_tower.timm_model"
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^model\.vision_tower\.vision_tower\.model\.", f"{_TIMM}."),
    (rf"^{_TIMM}\.patch_embed\.", f"{_TIMM}.stem."),
    *((rf"^{_TIMM}\.network\.{number}\.", f"{_TIMM}.{part}.") for number, part in enumerate(_RENAMED_PARTS)),
    (rf"^{_TIMM}\.conv_exp\.", f"{_TIMM}.final_conv."),
    (r"\.se\.reduce\.", ".se.fc1."),
    (r"\.se\.expand\.", ".se.fc2."),
    (r"\.convffn\.", ".mlp."),
    (r"\.lkb_reparam\.", ".reparam_conv."),
    (r"\.(layer_scale(?:_\d)?)$", r".\1.gamma"),
)
UNUSED = (rf"{_TIMM}\.head\.proj",)
"""What made MobileCLIP's vectors of the tower."""


def is_fastvithd(config: Raw) -> bool:
    """Return whether a config's tower is FastViTHD."""
    return str(config.get("mm_vision_tower")).startswith("mobileclip")


def open_layout(config: Raw) -> Translation:
    """Return a checkpoint whose `model_type` is llava_qwen2, with FastViTHD or with CLIP.

    Raises:
        UnsupportedConfigError: A setting that is not built, or another tower.
    """
    if not is_fastvithd(config):
        tower = tower_of(config)
        require(config, [("mm_vision_select_feature", "patch"), ("s2", False)])
        strategy = "default" if tower.is_clip else "full"
        layer, connector = int(config.get("mm_vision_select_layer", -2)), config.get("mm_projector_type") or "linear"
        return translated(config, "qwen2", tower, _CONVERSATION, layer=layer, strategy=strategy, connector=connector)
    name, how = str(config["mm_vision_tower"]), config.get("image_aspect_ratio") or "square"
    found = _NAME.fullmatch(name)
    if found is None or int(found[1]) % _PATCH_PX or how not in ("square", "pad"):
        raise UnsupportedConfigError(
            f"mm_vision_tower {name!r} with image_aspect_ratio {how!r}: built is mobileclip_l_SIDE, a side of whole "
            f"{_PATCH_PX} pixels, with square and pad"
        )
    require(
        config,
        [("quantization_config", None), ("mm_use_im_start_end", False), ("mm_patch_merge_type", "flat")],
    )
    require({"mm_projector_type": "linear", **config}, [("mm_projector_type", "mlp2x_gelu")])
    side = int(found[1])
    images = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_mean": (0.0,) * 3,
        "image_std": (1.0,) * 3,
    }
    whole = {
        "model_type": "fast_vlm",
        "text_config": decoder_part(config, "qwen2"),
        "vision_config": TOWER,
        "image_seq_length": (side // _PATCH_PX) ** 2,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "vision_feature_select_strategy": "full",
        "vision_feature_layer": -1,
    }
    return Translation(whole, padded(images) if how == "pad" else images, _CONVERSATION)
