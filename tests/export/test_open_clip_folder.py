"""Which of two layouts in one folder counts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bundle.errors import CheckpointError
from export.checkpoint import Checkpoint

OPEN_CLIP = Path(__file__).parents[1] / "data" / "open_clip" / "vit"


@pytest.fixture
def folder(tmp_path: Path, clip_checkpoint: Path) -> Path:
    """Return a folder of transformers' checkpoint and open_clip's."""
    both = shutil.copytree(OPEN_CLIP, tmp_path / "both")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(clip_checkpoint / name, both / name)
    return both


def test_transformers_layout_goes_before_open_clips(folder: Path) -> None:
    assert Checkpoint.open(folder).config["model_type"] == "clip"


@pytest.mark.parametrize("lacking", ["config.json", "model.safetensors"])
def test_open_clips_counts_where_that_is_not_whole(folder: Path, lacking: str) -> None:
    (folder / lacking).unlink()
    found = Checkpoint.open(folder)
    assert found.config["model_type"] == "open_clip"
    assert "visual.conv1.weight" in found.tensors


def test_open_clips_without_safetensors_is_told(folder: Path) -> None:
    for name in ("config.json", "open_clip_model.safetensors"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"lacks open_clip_model\.safetensors and open_clip_pytorch_model\.bin"):
        Checkpoint.open(folder)
