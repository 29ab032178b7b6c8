"""open_clip with an EVA-02 of timm's, whose sizes it takes from its name."""

from __future__ import annotations

import encoder_files as files
import pytest
from encoder_open_clip import CONFIG, changed, save_model, save_processor, stored

from export.config import TowerConfig
from export.towers.eva02 import EVA02S, Eva02Config

__all__ = ["CONFIG", "changed", "save_model", "save_processor", "stored"]
BASE, LARGE = "eva02_base_patch16_clip_224", "eva02_large_patch14_clip_336"
SIZES = {
    BASE: Eva02Config(TowerConfig(24, 64, 2, 3, "silu", 1e-6), 30, 10),
    LARGE: Eva02Config(TowerConfig(24, 64, 1, 3, "silu", 1e-6), 50, 10),
}
"""Of the towers of that name here, in the place of their own."""
REFUSED = [
    ({"vision_cfg": {"timm_model_name": BASE, "image_size": 336}}, "image_size is 336; eva02_base_patch16_clip_224"),
    ({"vision_cfg": {"timm_model_name": BASE, "image_size": 224, "timm_pool": "avg"}}, "timm_pool 'avg'"),
]


def geometries() -> list[files.Config]:
    """Return one of 3 patches a side, and one of 5, which turn by as much as those of training."""
    return [{"name": "eva02"}, {"name": "eva02_of_more_patches"}]


def patches(patch: pytest.MonkeyPatch) -> None:
    """Let the towers' names stand for tiny ones."""
    for name, sizes in SIZES.items():
        patch.setitem(EVA02S, name, sizes)
