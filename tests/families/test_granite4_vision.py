"""Granite 4 Vision's own: a decoder in the names of Granite 4.0's hybrids, of which no layer is recurrent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bundle.errors import UnsupportedConfigError
from export.exporter import export_checkpoint


def hybrid(text: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a text config as a hybrid's; `more` overrides."""
    names = {"model_type": "granitemoehybrid", "position_embedding_type": "rope", "num_local_experts": 0}
    inner = {"shared_intermediate_size": text["intermediate_size"], "intermediate_size": 8}
    return {**text, **names, **inner, "layer_types": ["attention"] * text["num_hidden_layers"], **more}


def test_a_hybrid_without_recurrent_layers_is_the_same_decoder(sample_of: Any, tmp_path: Path) -> None:
    """Its feed-forward gates the second half of one matrix by the first (transformers, `GraniteMoeHybridMLP`)."""
    sample = sample_of("granite4_vision", 0)
    folder = Path(shutil.copytree(sample.checkpoint, tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "text_config": hybrid(config["text_config"])}))
    weights = load_file(folder / "model.safetensors")
    for layer in (f"model.language_model.layers.{n}." for n in range(config["text_config"]["num_hidden_layers"])):
        gate, up, down = (weights.pop(f"{layer}mlp.{name}_proj.weight") for name in ("gate", "up", "down"))
        weights[f"{layer}shared_mlp.input_linear.weight"] = np.concatenate([gate, up])
        weights[f"{layer}shared_mlp.output_linear.weight"] = down
    save_file(weights, folder / "model.safetensors")
    made = export_checkpoint(folder, tmp_path / "bundle", name="tiny").files
    wanted = sample.bundle().manifest.files
    assert made["decoder.onnx.data"] == wanted["decoder.onnx.data"]
    assert made["decoder.onnx"] == wanted["decoder.onnx"]


@pytest.mark.parametrize(
    "told",
    [{"layer_types": ["mamba"] + ["attention"] * 5}, {"num_local_experts": 8}, {"position_embedding_type": None}],
)
def test_recurrent_layers_experts_and_no_positions_are_refused(
    told: dict[str, Any], sample_of: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sample_of("granite4_vision", 0).checkpoint, tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    text = hybrid(config["text_config"], **told)
    (folder / "config.json").write_text(json.dumps({**config, "text_config": text}))
    with pytest.raises(UnsupportedConfigError, match="built are layers of attention alone, 0 experts and rope"):
        export_checkpoint(folder, tmp_path / "bundle", name="tiny")
