"""open_clip's own towers, held to what open_clip made of them (tests/data/open_clip/make.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import encoder_files as files

DATA = Path(__file__).parents[1] / "data" / "open_clip"
CONFIG = "open_clip_config.json"
REFUSED = [
    ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, r"layers is \[3, 4, 6, 3\]: CLIP's ResNets are not built"),
    ({"vision_cfg": {"timm_model_name": "convnext_base"}}, "timm_model_name is 'convnext_base'"),
    ({"vision_cfg": {"pool_type": "none"}}, "pool_type 'none'"),
    ({"vision_cfg": {"attentional_pool": "cascade"}}, "attentional_pool 'cascade'"),
    ({"vision_cfg": {"qk_norm": True}}, "qk_norm is True"),
    ({"vision_cfg": {"block_type": "custom"}}, "block_type is 'custom'"),
    ({"vision_cfg": {"image_size": [30, 40]}}, r"image_size is \[30, 40\]"),
    ({"text_cfg": {"pool_type": "none"}}, "pool_type is 'none'"),
    ({"text_cfg": {"heads": 3}}, "width 20 is not a multiple of its 3 heads"),
    ({"text_cfg": {"tokenizer_kwargs": {"strip_sep_token": True}}}, "strip_sep_token"),
    ({"text_cfg": {"act_kwargs": {"approximate": "tanh"}}}, "only .* of a plain GELU is built"),
    ({"text_cfg": {"hf_model_name": "google/mt5-base"}}, "hf_model_name is 'google/mt5-base'; built are bert-base"),
]


def geometries() -> list[files.Config]:
    """Return a plain one with its text tower at the top, and one with every other switch set."""
    return [{"name": "vit"}, {"name": "vit_of_all_switches"}]


def save_model(folder: Path, config: files.Config) -> None:
    """Copy the checkpoint; what open_clip made of it stays behind."""
    shutil.copytree(DATA / config["name"], folder, ignore=shutil.ignore_patterns("*.npz"))


def save_processor(folder: Path, config: files.Config) -> None:
    """Return; it was copied."""


def stored(config: files.Config) -> Path:
    """Return the file of what open_clip made of `pictures` and `TEXTS`."""
    return DATA / config["name"] / "expected.npz"


def changed(change: files.Config) -> files.Config:
    """Return the settings of the first geometry with some of its towers' changed."""
    settings = json.loads((DATA / "vit" / CONFIG).read_text())
    for part, values in change.items():
        settings["model_cfg"][part] |= values
    return settings
