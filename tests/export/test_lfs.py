"""A checkpoint that was cloned without git-lfs is told as such, whichever file it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bundle.errors import CheckpointError
from export.exporter import export_checkpoint
from export.gguf_decoder import open_gguf

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 16747240\n"


@pytest.mark.parametrize(
    "file",
    [
        "model.safetensors",
        "tokenizer.json",
        "config.json",
        "tokenizer_config.json",
        "processor_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "added_tokens.json",
    ],
)
def test_pointer_in_place_of_a_file_is_named(file: str, smolvlm_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(smolvlm_checkpoint, tmp_path / "checkpoint"))
    (folder / file).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=rf"{file} is a Git LFS pointer.*git lfs pull"):
        export_checkpoint(folder, tmp_path / "bundle")


def test_pointer_in_place_of_a_shard_is_named(smolvlm_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(smolvlm_checkpoint, tmp_path / "checkpoint"))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    (folder / "model-00001-of-00001.safetensors").write_bytes(POINTER)
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        export_checkpoint(folder, tmp_path / "bundle")


def test_pointer_in_place_of_a_gguf_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(POINTER)
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        open_gguf(tmp_path / "model.gguf")


def test_pointer_of_a_file_that_is_not_read_does_not_matter(smolvlm_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(smolvlm_checkpoint, tmp_path / "checkpoint"))
    (folder / "pytorch_model.bin").write_bytes(POINTER)
    assert export_checkpoint(folder, tmp_path / "bundle").name == "checkpoint"
