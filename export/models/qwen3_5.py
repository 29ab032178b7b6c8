"""Qwen3.5 (Qwen/Qwen3.5-0.8B, 2B, 4B): Qwen3-VL's tower and prompts, and a decoder most of whose layers recur."""

from __future__ import annotations

from typing import ClassVar

from export.config import sub_config
from export.models.qwen2_vl import AnyShape
from export.models.qwen3_vl import Qwen3VL
from export.towers.qwen3_vl import Qwen3VLTowerConfig


class Qwen35(Qwen3VL):
    """`model_type` qwen3_5."""

    text_type = "qwen3_5_text"
    # what predicts several tokens at once; transformers leaves it out as well
    unused: ClassVar[tuple[str, ...]] = (*AnyShape.unused, r"mtp\..*")

    @property
    def tower(self) -> Qwen3VLTowerConfig:
        """Sizes of the tower, none of whose layers but the last gives features."""
        return Qwen3VLTowerConfig.read({**sub_config(self.config, "vision_config"), "deepstack_visual_indexes": ()})
