"""Qwen3-VL (arXiv 2511.21631): images of any shape, features of several layers of the tower for the decoder's first."""

from __future__ import annotations

from export.config import Raw, sub_config
from export.decoders.qwen3_vl_text import DEEP_LAYERS
from export.image_processors.videos import VideoSettings
from export.models.qwen2_vl import TOWER, AnyShape
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.qwen3_vl import Qwen3VLTower, Qwen3VLTowerConfig


class Qwen3VL(AnyShape):
    """`model_type` qwen3_vl."""

    text_type = "qwen3_vl_text"
    takes_groups = True
    video_settings = VideoSettings(least_px=128 * 32 * 32, most_px=768 * 32 * 32, of_all=True)
    group_tokens = ("<|vision_start|>", "<|vision_end|>")

    @property
    def tower(self) -> Qwen3VLTowerConfig:
        """Sizes of the tower."""
        return Qwen3VLTowerConfig.read(sub_config(self.config, "vision_config"))

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, and how many of its layers take features."""
        return {**super().text_config, DEEP_LAYERS: len(self.tower.deep_layers)}

    @property
    def feature_size(self) -> int:
        """Width of a row: the embedding, and what each deep layer adds."""
        return self.decoder.config.hidden_size * (1 + len(self.tower.deep_layers))

    @property
    def given_width(self) -> int:
        """The decoder's width by the tower's config."""
        return self.tower.out_size

    def vision(self, dialect: Dialect) -> Module:
        """Return the tower, its mergers within."""
        return Qwen3VLTower(self.tower, dialect, TOWER)
