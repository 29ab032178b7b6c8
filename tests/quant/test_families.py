"""Every exported family is made smaller, not only the two that the other tests use."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from bundle.directory import open_bundle
from export.exporter import export_checkpoint
from graphs.layers import find_linears
from graphs.store import open_graph
from quant.quantizer import quantize_bundle

LLAVA = {"llava-clip-llama": ("clip", "llama"), "llava-siglip-qwen2": ("siglip", "qwen2")}


def save(checkpoints: ModuleType, family: str, folder: Path) -> None:
    if family in LLAVA:
        checkpoints.save_llava(folder, checkpoints.llava_config(*LLAVA[family]))
    else:
        checkpoints.save_siglip(folder)


@pytest.mark.parametrize("family", [*LLAVA, "siglip"])
def test_no_linear_layer_of_a_family_keeps_float_weights(checkpoints: ModuleType, family: str, tmp_path: Path) -> None:
    save(checkpoints, family, tmp_path / "checkpoint")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle")
    quantize_bundle(tmp_path / "bundle", tmp_path / "int8", weights="int8")
    variant = open_bundle(tmp_path / "int8", allow_ungated=True)
    assert {part.scheme for part in variant.manifest.components.values()} <= {"int8", "int8-weight-only"}
    assert all(find_linears(open_graph(variant.graph_path(name)).graph) == [] for name in variant.manifest.components)
    # 8-bit weights and activations through a few random layers.
    assert all(gate.value > 0.99 for gate in variant.manifest.gates)


def test_portable_encoders_become_int8_in_standard_operators(clip_checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(clip_checkpoint, tmp_path / "bundle", dialect="portable")
    variant = quantize_bundle(tmp_path / "bundle", tmp_path / "int8", weights="int8")
    assert {part.scheme for part in variant.components.values()} == {"int8"}
    assert "gather_rows 8-bit" in variant.components["text_encoder"].detail
    graphs = [open_graph(tmp_path / "int8" / part.file).graph for part in variant.components.values()]
    domains = {node.domain for graph in graphs for node in graph}
    assert domains == {""}
    assert all(gate.value > 0.99 for gate in variant.gates)
