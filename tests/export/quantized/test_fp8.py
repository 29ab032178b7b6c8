"""Checkpoints in eight-bit floating point, restored as transformers restores them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from bundle.errors import CheckpointError, UnsupportedConfigError
from export.checkpoint import Checkpoint
from export.exporter import export_checkpoint
from export.quantized.fp8 import Float8
from graphs.store import open_graph

SKIPS = ["model.vision_model", "model.connector", "lm_head"]
LAYER = "model.text_model.layers.1.mlp.up_proj"
BLOCK = (24, 20)
"""Which divides neither side of most matrices."""


@pytest.fixture(scope="module", autouse=True)
def _torch() -> None:
    """Import torch here, so that collecting takes none."""
    global torch
    import torch


@pytest.fixture
def save_fp8(checkpoints: ModuleType) -> Any:
    """Write a checkpoint whose decoder is in eight bits, one scale a matrix or a block."""

    def save(folder: Path, block: tuple[int, int] | None, **settings: Any) -> None:
        from safetensors.torch import load_file

        checkpoints.save_smolvlm(folder)
        stored = {}
        for name, weight in load_file(folder / "model.safetensors").items():
            stored[name] = weight
            if ".layers." not in name or weight.ndim != 2 or "text_model" not in name:
                continue
            scale = _scale(weight, block)
            stored[name] = (weight / _spread(scale, block, weight.shape)).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale
            stored[name.removesuffix("weight") + "activation_scale"] = torch.tensor(0.03)
        put(folder, stored, block, **settings)

    return save


def put(folder: Path, stored: dict[str, Any], block: tuple[int, int] | None, **settings: Any) -> None:
    import json

    from safetensors.torch import save_file

    save_file({name: weight.contiguous() for name, weight in stored.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    method = {"quant_method": "fp8", "activation_scheme": "static", "modules_to_not_convert": SKIPS}
    quantization = {**method, "weight_block_size": block, **settings}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))


def _scale(weight: Any, block: tuple[int, int] | None) -> Any:
    if block is None:
        return weight.abs().max() / 448
    rows, columns = (torch.arange(size) // of for size, of in zip(weight.shape, block, strict=True))
    scale = torch.zeros(int(rows[-1]) + 1, int(columns[-1]) + 1)
    for row in range(scale.shape[0]):
        for column in range(scale.shape[1]):
            scale[row, column] = weight[rows == row][:, columns == column].abs().max() / 448
    return scale


def _spread(scale: Any, block: tuple[int, int] | None, shape: Any) -> Any:
    if block is None:
        return scale
    return scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: shape[0], : shape[1]]


@pytest.mark.parametrize("block", [None, BLOCK], ids=["one-scale", "blocks"])
def test_matrices_are_transformers_own(save_fp8: Any, tmp_path: Path, block: tuple[int, int] | None) -> None:
    from safetensors.torch import load_file
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    save_fp8(tmp_path / "checkpoint", block)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle")
    stored = load_file(tmp_path / "checkpoint" / "model.safetensors")
    codes, scale = stored[f"{LAYER}.weight"], stored[f"{LAYER}.weight_scale_inv"]
    expected = _dequantize_fp8_weight(codes, scale, None if block is None else list(block), torch.float32)
    found = open_graph(tmp_path / "bundle" / "decoder.onnx").graph.initializers[f"{LAYER}.weight"].const_value
    assert found is not None
    assert_array_equal(found.numpy().T, expected.numpy())


def test_a_contradiction_is_an_error_that_names_it(save_fp8: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "checkpoint"
    save_fp8(folder, None)
    stored = load_file(folder / "model.safetensors")

    def refused(match: str, weights: dict[str, Any], block: Any = None, **settings: Any) -> None:
        put(folder, weights, block, **settings)
        with pytest.raises((CheckpointError, UnsupportedConfigError), match=match):
            export_checkpoint(folder, tmp_path / "bundle")

    refused(r"weight_block_size \(24, 20\) makes it", stored, BLOCK)
    refused("modules_to_not_convert lists its layer", stored, modules_to_not_convert=["model.text_model"])
    refused("weight_block_size", stored, (0, 4))
    refused("scale_fmt", stored, scale_fmt="ue8m0")
    without = {name: weight for name, weight in stored.items() if name != f"{LAYER}.weight_scale_inv"}
    refused(f"stored as bytes, such as {LAYER}.*no weight_scale_inv", without)
    whole = {name: weight.float() for name, weight in stored.items() if not name.endswith("_scale_inv")}
    refused("holds none", whole)


def test_scales_of_inputs_are_left_out(save_fp8: Any, tmp_path: Path) -> None:
    save_fp8(tmp_path, None)
    opened = Checkpoint.open(tmp_path)
    found = Float8(opened.config["quantization_config"]).restored(opened.tensors, frozenset())
    assert found.keys() == {name for name in opened.tensors if "scale" not in name}
    assert np.isfinite(found[f"{LAYER}.weight"].read()).all()
