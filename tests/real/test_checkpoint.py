"""The checkpoint around the real decoder: its tower is the one that was handed in, or says that it is nobody's."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file, save_file

from bundle.errors import CheckpointError
from export.checkpoint import Checkpoint
from reference.real.checkpoint import REFERENCE_TOWER, build_checkpoint, checkpoint_key

pytestmark = pytest.mark.real
PROJECTION = "model.connector.modality_projection.proj.weight"


@pytest.fixture
def vision(tmp_path: Path) -> Path:
    """A tower and a connector alone, in float16, as training ships them."""
    folder = tmp_path / "vision"
    folder.mkdir()
    for name in ("config.json", "processor_config.json"):
        shutil.copyfile(REFERENCE_TOWER / name, folder / name)
    stored = load_file(REFERENCE_TOWER / "model.safetensors")
    tower = {name: value for name, value in stored.items() if name.startswith("model.vision_model.")}
    connector = np.random.default_rng(1).standard_normal((576, 512)).astype(np.float16)
    save_file({**tower, PROJECTION: connector}, folder / "model.safetensors")
    return folder


@pytest.mark.slow
def test_trained_tower_and_connector_are_taken_as_they_are(gguf_file: Path, vision: Path, tmp_path: Path) -> None:
    build_checkpoint(gguf_file, tmp_path / "whole", vision)
    whole = Checkpoint.open(tmp_path / "whole").tensors
    for name, value in load_file(vision / "model.safetensors").items():
        assert_array_equal(whole[name].read(), value.astype(np.float32), err_msg=name)
    (tmp_path / "whole" / "model.safetensors").unlink()  # half a gigabyte


def test_connector_of_another_width_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    """The small reference model's own decoder is 256 wide."""
    with pytest.raises(
        CheckpointError, match=r"proj\.weight of shape \(256, 512\); the decoder takes features 576 wide"
    ):
        build_checkpoint(gguf_file, tmp_path / "whole", REFERENCE_TOWER)
    assert not (tmp_path / "whole").exists()


def test_key_follows_the_tower(vision: Path) -> None:
    keys = {checkpoint_key(), checkpoint_key(vision)}
    stored = load_file(vision / "model.safetensors")
    save_file({**stored, PROJECTION: stored[PROJECTION] * 2}, vision / "model.safetensors")
    assert len(keys | {checkpoint_key(vision)}) == 3


def test_rows_of_new_tokens_are_the_mean_of_the_others(checkpoint: Path) -> None:
    table = Checkpoint.open(checkpoint).tensors["model.text_model.embed_tokens.weight"].read()
    assert table.shape == (49_280, 576)
    expected = table[:49_152].mean(axis=0, dtype=np.float64).astype(np.float32)
    assert_array_equal(table[49_152:], np.broadcast_to(expected, (128, 576)))
