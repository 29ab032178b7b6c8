"""What a checkpoint of LLaVA's kind says, in the words of the family that it then is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import product
from typing import Any

from bundle.errors import UnsupportedConfigError
from export.authors.conversation import Conversation
from export.authors.towers import Tower
from export.config import Raw, require

_OF_THE_WHOLE = ("mm_", "tune_", "freeze_", "unfreeze_", "image_", "tokenizer_", "use_mm", "use_s2", "s2")
_NO_SIZES = ("architectures", "auto_map", "model_type", "_name_or_path", "vision_config", "tower")

_SPAN = re.compile(r"\((\d+)x(\d+)\),\.\.\.,\((\d+)x(\d+)\)")
"""From so many tiles across and down to so many."""


@dataclass(frozen=True)
class Translation:
    """A checkpoint as its authors publish it, in transformers' words.

    Attributes:
        config: Of the family.
        images: Settings of an image processor of transformers, with its class.
        conversation: How prompts are written.
        has_head_bias: The decoder's output matrix has biases, which it has in no LLaVA of transformers'.
        has_tiles: Images are cut into the tiles of the best of several grids.
    """

    config: Raw
    images: Raw
    conversation: Conversation
    has_head_bias: bool = False
    has_tiles: bool = False


def decoder_part(config: Raw, model_type: str) -> dict[str, Any]:
    """Return the decoder's settings out of a config that has them among all others."""
    kept = {key: value for key, value in config.items() if key not in _NO_SIZES and not key.startswith(_OF_THE_WHOLE)}
    return {**kept, "model_type": model_type}


def translated(
    config: Raw, decoder: str, tower: Tower, conversation: Conversation, *, layer: int, strategy: str, connector: str
) -> Translation:
    """Return a LLaVA, or a LLaVA-NeXT where images are cut into tiles.

    Args:
        config: Of the checkpoint, the decoder's settings among the rest.
        decoder: `model_type` of its decoder.
        tower: What reads images.
        conversation: How prompts are written.
        layer: Whose hidden states are read.
        strategy: "default", without the first token, or "full".
        connector: `mm_projector_type`.

    Raises:
        UnsupportedConfigError: Images prepared, or features put together, in a way that is not built.
    """
    require(config, [("quantization_config", None), ("mm_use_im_start_end", False), ("mm_resampler_type", None)])
    whole = {
        "model_type": "llava",
        "text_config": decoder_part(config, decoder),
        "vision_config": tower.config,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": strategy,
        "mm_projector_type": connector,
    }
    how, merged = config.get("image_aspect_ratio") or "square", config.get("mm_patch_merge_type") or "flat"
    if how == "anyres" and merged == "spatial_unpad":
        grids = grids_of(config.get("image_grid_pinpoints"), int(tower.config["image_size"]))
        images = {**tower.images, "image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": grids}
        return Translation({**whole, "image_grid_pinpoints": grids}, images, conversation, has_tiles=True)
    if how not in ("square", "pad") or merged != "flat":
        raise UnsupportedConfigError(
            f"image_aspect_ratio {how!r} with mm_patch_merge_type {merged!r}: built are square and pad with flat, and "
            "anyres with spatial_unpad"
        )
    return Translation(whole, padded(tower.images) if how == "pad" else tower.images, conversation)


def padded(images: Raw) -> Raw:
    """Return the settings of a processor whose images are squared by padding first, with the mean's colour."""
    crops = not str(images.get("image_processor_type")).startswith("Siglip") and images.get("do_center_crop", True)
    return {**images, "image_processor_type": "LlavaImageProcessor", "do_pad": True, "do_center_crop": crops}


def grids_of(stated: Any, side_px: int) -> list[list[int]]:
    """Return the grids as (height, width); the authors' code has (width, height), or a range of tiles in words.

    Args:
        stated: `image_grid_pinpoints`: pairs, their text, or "(1x1),...,(6x6)".
        side_px: Of a tile.

    Raises:
        UnsupportedConfigError: It is none of these.
    """
    span = _SPAN.fullmatch(stated) if isinstance(stated, str) else None
    if span is not None:
        first_across, first_down, last_across, last_down = map(int, span.groups())
        across, down = range(first_across, last_across + 1), range(first_down, last_down + 1)
        return [[rows * side_px, cols * side_px] for cols, rows in product(across, down)]
    try:
        pairs = json.loads(stated.replace("(", "[").replace(")", "]")) if isinstance(stated, str) else stated
        return [[int(height), int(width)] for width, height in pairs]
    except (TypeError, ValueError) as error:
        raise UnsupportedConfigError(
            f"image_grid_pinpoints {stated!r}: wanted are pairs of width and height in pixels"
        ) from error
