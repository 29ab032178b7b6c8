"""Every exported family is made smaller, not only the two that the other tests use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bundle.directory import open_bundle
from graphs.layers import find_linears
from graphs.store import open_graph
from quant.quantizer import quantize_bundle


@pytest.mark.parametrize("family", ["llava-clip-llama", "llava-siglip-qwen2", "siglip"])
def test_no_linear_layer_of_a_family_keeps_float_weights(
    bundle_of: Callable[[str, str], Path], family: str, tmp_path: Path
) -> None:
    quantize_bundle(bundle_of(family, "contrib"), tmp_path / "int8", weights="int8")
    variant = open_bundle(tmp_path / "int8", allow_ungated=True)
    assert {part.scheme for part in variant.manifest.components.values()} <= {"int8", "int8-weight-only"}
    assert all(find_linears(open_graph(variant.graph_path(name)).graph) == [] for name in variant.manifest.components)
    # 8-bit weights and activations through a few random layers.
    assert all(gate.value > 0.99 for gate in variant.manifest.gates)


def test_portable_encoders_become_int8_in_standard_operators(
    bundle_of: Callable[[str, str], Path], tmp_path: Path
) -> None:
    variant = quantize_bundle(bundle_of("clip", "portable"), tmp_path / "int8", weights="int8")
    assert {part.scheme for part in variant.components.values()} == {"int8"}
    assert "gather_rows 8-bit" in variant.components["text_encoder"].detail
    graphs = [open_graph(tmp_path / "int8" / part.file).graph for part in variant.components.values()]
    domains = {node.domain for graph in graphs for node in graph}
    assert domains == {""}
    assert all(gate.value > 0.99 for gate in variant.gates)
