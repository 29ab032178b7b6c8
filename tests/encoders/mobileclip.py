"""MobileCLIP as apple/ml-mobileclip keeps it, held to what its code made (tests/data/mobileclip)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import encoder_files as files
import pytest

from export.towers.fastvit_config import FASTVITS, FastViTConfig

DATA = Path(__file__).parents[1] / "data" / "mobileclip"
FIXED = {"attends": (False, False, False, True), "squeezes": (False, False, True, True)}
FIXED |= {"norms_by_batch": True, "stem_has_scales": True}
SIZES = {
    "fastvit_mci0": FastViTConfig((1, 2, 1, 1), (8, 16, 16, 32), (2, 3, 1.5, 2), **FIXED),
    "fastvit_mci2": FastViTConfig((1, 1, 1, 2), (8, 8, 16, 64), (1, 2, 2, 1), **FIXED),
}
"""Of the towers of that name here, in the place of their own."""
REFUSED = [
    ({"image_cfg": {"model_name": "vit_b16"}}, "image_cfg.model_name is 'vit_b16'; built are mci0, mci1, mci2"),
    ({"image_cfg": {"image_size": 250}}, "image_size is 250"),
    ({"text_cfg": {"model_name": "mct2"}}, "text_cfg.model_name 'mct2'"),
    ({"text_cfg": {"n_heads_per_layer": 3}}, "dim 20 is not a multiple of n_heads_per_layer"),
    ({"text_cfg": {"ffn_multiplier_per_layer": [4.0]}}, "ffn_multiplier_per_layer lists 1 layers of 2"),
]


def geometries() -> list[files.Config]:
    """Return one whose first and last layers mix words by convolutions, and one whose words see those before them."""
    return [{"name": "s0"}, {"name": "s2_that_looks_back"}]


def save_model(folder: Path, config: files.Config) -> None:
    """Copy the checkpoint; what the authors' code made of it stays behind."""
    shutil.copytree(DATA / config["name"], folder, ignore=shutil.ignore_patterns("*.npz"))


def save_processor(folder: Path, config: files.Config) -> None:
    """Return; it was copied."""


def stored(config: files.Config) -> Path:
    """Return the file of what the authors' code made of `pictures` and `TEXTS`."""
    return DATA / config["name"] / "expected.npz"


def changed(change: files.Config) -> files.Config:
    """Return the settings of the first geometry with some of its towers' changed."""
    settings = json.loads((DATA / "s0" / "config.json").read_text())
    for part, values in change.items():
        settings[part] |= values
    return settings


def patches(patch: pytest.MonkeyPatch) -> None:
    """Let the towers' names stand for tiny ones."""
    for name, sizes in SIZES.items():
        patch.setitem(FASTVITS, name, sizes)
