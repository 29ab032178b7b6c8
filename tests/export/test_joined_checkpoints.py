"""A language model or learned prompts lie in CLIP's folder; in another's they are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bundle.errors import CheckpointError
from export.checkpoint import Checkpoint


def written(folder: Path, model_type: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    save_file({"logit_scale": np.zeros(1, np.float32)}, folder / "model.safetensors")
    return folder


def test_a_language_model_reads_the_texts_of_a_clip_alone(tmp_path: Path) -> None:
    clip, other = written(tmp_path / "clip", "clip"), written(tmp_path / "other", "siglip")
    for folder in (clip, other):
        written(folder / "language_model", "llama")
    found = Checkpoint.open(clip)
    assert (found.config["model_type"], found.config["text_config"]) == ("llm2clip", {"model_type": "llama"})
    assert found.tensors.keys() == {"logit_scale", "text_model.logit_scale"}
    assert found.digest() != Checkpoint.open(written(tmp_path / "alone", "clip")).digest()
    with pytest.raises(CheckpointError, match="language model in a checkpoint of type 'siglip'; only CLIP's"):
        Checkpoint.open(other)


@pytest.mark.parametrize(("model_type", "key"), [("siglip", "ctx"), ("clip", "prompts")])
def test_prompts_are_those_of_a_clip(model_type: str, key: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "checkpoint", model_type)
    save_file({key: np.zeros((2, 8), np.float32)}, folder / "prompt_learner.safetensors")
    with pytest.raises(CheckpointError, match=f"type '{model_type}' holds 1 tensors; what is wanted is MaPLe's"):
        Checkpoint.open(folder)
