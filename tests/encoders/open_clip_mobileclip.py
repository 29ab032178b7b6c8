"""open_clip with MobileCLIP's FastViTs of timm's, whose branches of training are summed when they are read."""

from __future__ import annotations

import encoder_files as files
import pytest
from encoder_open_clip import CONFIG, changed, save_model, save_processor, stored

from export.towers.fastvit_config import FASTVITS, FastViTConfig

__all__ = ["CONFIG", "changed", "save_model", "save_processor", "stored"]
SMALL, LARGE = "fastvit_mci0", "fastvit_mci3"
SIZES = {
    SMALL: FastViTConfig(
        (1, 2, 1, 1),
        (8, 16, 16, 32),
        (2, 3, 1.5, 2),
        attends=(False, False, False, True),
        squeezes=(False, False, True, True),
        norms_by_batch=True,
        stem_has_scales=True,
    ),
    LARGE: FastViTConfig((1, 1, 1, 2, 1), (8, 8, 16, 32, 64), (2, 3, 2, 1.5, 1)),
}
"""Of the towers of that name here, in the place of their own."""
REFUSED = [
    ({"vision_cfg": {"timm_model_name": SMALL, "image_size": 250}}, "image_size is 250; fastvit_mci0 takes .* of 32"),
    (
        {"vision_cfg": {"timm_model_name": SMALL, "image_size": 256, "timm_pool": "avg", "timm_proj": "linear"}},
        "timm_pool 'avg' with timm_proj 'linear'",
    ),
]


def geometries() -> list[files.Config]:
    """Return one of four stages with gates and batch norms, and one of five; odd squares and even ones."""
    return [{"name": "mobileclip"}, {"name": "mobileclip2_of_five_stages"}]


def patches(patch: pytest.MonkeyPatch) -> None:
    """Let the towers' names stand for tiny ones."""
    for name, sizes in SIZES.items():
        patch.setitem(FASTVITS, name, sizes)
