"""LLaVA-OneVision (arXiv 2408.03326): LLaVA-NeXT on SigLIP and Qwen2, whose many tiles are scaled down together."""

from __future__ import annotations

import re
from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from export.config import Raw, sub_config
from export.found_processor import FoundProcessor
from export.image_processors.llava_onevision import PINPOINTS
from export.models.llava_next import LlavaNext

_DEFAULTS: Raw = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
_DEFAULT_TEXT, _DEFAULT_TOWER = "qwen2", "siglip_vision_model"
_DEFAULT_RATIO = "anyres_max_9"


class LlavaOnevision(LlavaNext):
    """`model_type` llava_onevision."""

    image_processor = "LlavaOnevisionImageProcessor"
    pinpoints: ClassVar = PINPOINTS
    halves_frames = True

    def __init__(self, config: Raw) -> None:
        tower = {"model_type": _DEFAULT_TOWER, **sub_config(config, "vision_config")}
        super().__init__({**_DEFAULTS, **config, "vision_config": tower})

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, which is a Qwen2 where it says nothing."""
        return {"model_type": _DEFAULT_TEXT, **super().text_config}

    def most_tiles(self, found: FoundProcessor) -> int:
        """Return of how many tiles' patches a picture has at most.

        Raises:
            UnsupportedConfigError: `vision_aspect_ratio` gives no number, or the processor another than the config.
        """
        ours, theirs = (each.get("vision_aspect_ratio", _DEFAULT_RATIO) for each in (self.config, found.settings))
        stated = re.fullmatch(r"anyres_max_(\d+)", str(ours))
        if stated is None or theirs != ours:
            raise UnsupportedConfigError(
                f"vision_aspect_ratio is {ours!r} in config.json and {theirs!r} in the processor; built is "
                "anyres_max_N, the same in both"
            )
        self._check_counted(found)
        return int(stated[1])

    def _check_counted(self, found: FoundProcessor) -> None:
        counted = found.settings.get("num_image_tokens")
        if counted is not None and int(counted) != self.tokens_per_tile:
            raise UnsupportedConfigError(
                f"processor_config.json: num_image_tokens {counted}, but tiles of {self.image_size_px} pixels make "
                f"{self.tokens_per_tile} tokens"
            )
