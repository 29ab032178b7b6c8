"""open_clip with MobileCLIP's ViTs of timm's: patches by a stem of convolutions, and CLIP's with a norm before all."""

from __future__ import annotations

import encoder_files as files
import pytest
from encoder_open_clip import CONFIG, changed, save_model, save_processor, stored

from export.config import TowerConfig
from export.towers.timm_vit import TIMM_VITS, TimmVitConfig

__all__ = ["CONFIG", "changed", "save_model", "save_processor", "stored"]
STEMMED, LARGE = "vit_base_mci_224", "vit_large_patch14_clip_224"
SIZES = {
    STEMMED: TimmVitConfig(TowerConfig(24, 96, 2, 3, "gelu", 1e-6), 48, 16, False, stem=(4, 2, 2)),
    LARGE: TimmVitConfig(TowerConfig(24, 96, 2, 3, "gelu", 1e-5), 30, 10, False, norms_first=True),
}
"""Of the towers of that name here, in the place of their own."""
REFUSED = [
    ({"vision_cfg": {"timm_model_name": STEMMED, "image_size": 256}}, "image_size is 256; vit_base_mci_224 takes 224"),
    ({"vision_cfg": {"timm_model_name": LARGE, "image_size": 224, "timm_pool": "map"}}, "timm_pool 'map'"),
]


def geometries() -> list[files.Config]:
    """Return one whose class token has no position, and one whose patches have no biases."""
    return [{"name": "mobileclip_vit"}, {"name": "mobileclip2_vit"}]


def patches(patch: pytest.MonkeyPatch) -> None:
    """Let the towers' names stand for tiny ones."""
    for name, sizes in SIZES.items():
        patch.setitem(TIMM_VITS, name, sizes)
