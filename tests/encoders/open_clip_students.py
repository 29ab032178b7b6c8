"""Students in open_clip's layout: an image tower of one sample beside the text tower of another.

VL2V-ADiP (arXiv 2310.08255) leaves a plain ViT with a projection under its teacher's text tower; DC-CLIP (arXiv
2404.11249) a small image tower beside a small bilingual one. Either tower is held to what open_clip made with it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import encoder_files as files
import numpy as np
import pytest
from encoder_open_clip import CONFIG, DATA, changed, save_processor
from safetensors.numpy import load_file, save_file

from export.config import TowerConfig
from export.towers.timm_vit import TIMM_VITS, TimmVitConfig

__all__ = ["CONFIG", "changed", "save_processor"]
PLAIN, LARGE = "vit_base_patch16_224", "vit_large_patch14_clip_224"
SIZES = {
    PLAIN: TimmVitConfig(TowerConfig(24, 96, 2, 3, "gelu", 1e-6), 32, 8, False),
    LARGE: TimmVitConfig(TowerConfig(24, 96, 2, 3, "gelu", 1e-5), 30, 10, False, norms_first=True),
}
"""Of the towers of that name here, in the place of their own."""
REFUSED = [({"vision_cfg": {"timm_model_name": "mobilenetv4_small"}}, "timm_model_name is 'mobilenetv4_small'")]
_FILE = "open_clip_model.safetensors"
_STORED: dict[str, Path] = {}


def geometries() -> list[files.Config]:
    """Return a ViT with a projection under CLIP's text tower, and a small tower beside one that reads Chinese."""
    return [{"images": "biomed", "texts": "vit"}, {"images": "mobileclip2_vit", "texts": "worldwide"}]


def save_model(folder: Path, config: files.Config) -> None:
    """Write the towers of two samples as one checkpoint, and what open_clip made of each beside it."""
    images, texts = DATA / config["images"], DATA / config["texts"]
    shutil.copytree(texts, folder, ignore=shutil.ignore_patterns("*.npz"))
    seen, read = (load_file(each / _FILE) for each in (images, texts))
    weights = {key: value for key, value in seen.items() if key.startswith("visual.")}
    weights |= {key: value for key, value in read.items() if not key.startswith("visual.")}
    save_file(weights, folder / _FILE)
    settings, other = (json.loads((each / CONFIG).read_text()) for each in (texts, images))
    settings["model_cfg"]["vision_cfg"] = other["model_cfg"]["vision_cfg"]
    settings["preprocess_cfg"] = other["preprocess_cfg"]
    files.write_json(folder / CONFIG, settings)
    _STORED[config["images"]] = folder.with_suffix(".npz")
    with np.load(images / "expected.npz") as of_images, np.load(texts / "expected.npz") as of_texts:
        vectors = {"images": of_images["images"], "texts": of_texts["texts"]}
        inputs = {"pixel_values": of_images["pixel_values"], "input_ids": of_texts["input_ids"]}
    logits = np.exp(read["logit_scale"].astype(np.float32)) * vectors["images"] @ vectors["texts"].T
    np.savez(_STORED[config["images"]], logits=logits, **vectors, **inputs)


def stored(config: files.Config) -> Path:
    """Return the file of what open_clip made of `pictures` and `TEXTS` with either tower."""
    return _STORED[config["images"]]


def patches(patch: pytest.MonkeyPatch) -> None:
    """Let the towers' names stand for tiny ones."""
    for name, sizes in SIZES.items():
        patch.setitem(TIMM_VITS, name, sizes)
