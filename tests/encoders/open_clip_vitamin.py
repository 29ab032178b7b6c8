"""open_clip with a ViTamin of timm's, whose sizes it takes from its name."""

from __future__ import annotations

import encoder_files as files
import pytest
from encoder_open_clip import CONFIG, changed, save_model, save_processor, stored

from export.config import TowerConfig
from export.towers.vitamin import VITAMINS, VitaminConfig

__all__ = ["CONFIG", "changed", "save_model", "save_processor", "stored"]
SMALL, XLARGE = "vitamin_small_224", "vitamin_xlarge_256"
_TOWER = TowerConfig(24, 48, 2, 3, "gelu", 1e-6)
SIZES = {
    SMALL: VitaminConfig(_TOWER, (6, 12), 64, (2, 1)),
    XLARGE: VitaminConfig(_TOWER, (6, 12), 48, (2, 1), has_positions=False),
}
"""Of the towers of that name here, in the place of their own."""
REFUSED = [
    ({"vision_cfg": {"timm_model_name": XLARGE, "image_size": 224}}, "image_size is 224; vitamin_xlarge_256 takes 256"),
    ({"vision_cfg": {"timm_model_name": SMALL, "image_size": 224, "timm_proj": "mlp"}}, "timm_proj 'mlp'"),
]


def geometries() -> list[files.Config]:
    """Return one with positions, and one without, whose places are an odd square."""
    return [{"name": "vitamin"}, {"name": "vitamin_without_positions"}]


def patches(patch: pytest.MonkeyPatch) -> None:
    """Let the towers' names stand for tiny ones."""
    for name, sizes in SIZES.items():
        patch.setitem(VITAMINS, name, sizes)
