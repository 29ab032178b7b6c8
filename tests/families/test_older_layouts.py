"""Checkpoints as the hub has them: the decoder's settings among the rest, and files of older names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bundle.directory import read_manifest
from export.exporter import export_checkpoint


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_flat_configs_and_older_processor_files_make_the_same_bundle(
    family: str, sample_of: Any, tmp_path: Path
) -> None:
    sample = sample_of(family, 0)
    folder = Path(shutil.copytree(sample.checkpoint, tmp_path / "hub"))
    _flatten(folder / "config.json", family)
    _split(folder)
    ours, theirs = sample.bundle().manifest, export_checkpoint(folder, tmp_path / "bundle", name="tiny")
    assert theirs.components == ours.components
    assert theirs.image_prompt == ours.image_prompt
    for name in ("preprocessor.json", "decoder.onnx", "decoder.onnx.data", "vision_encoder.onnx"):
        assert read_manifest(tmp_path / "bundle").files[name] == ours.files[name], name


def _flatten(path: Path, family: str) -> None:
    config = json.loads(path.read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
    path.write_text(json.dumps({**text, **config, "model_type": family, "use_sliding_window": False}))


def _split(folder: Path) -> None:
    """Write the image processor into the file of its own that older checkpoints have."""
    (path,) = folder.glob("processor_config.json")
    images = json.loads(path.read_text())["image_processor"]
    size = images.pop("size")
    images |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    images["size"] = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    path.unlink()
