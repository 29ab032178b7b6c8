from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from bundle.directory import read_manifest
from bundle.errors import QuantizationError
from graphs.store import open_graph
from quant.planning.survey import survey


def surveyed(bundle: Path, component: str):
    manifest = read_manifest(bundle)
    return survey(component, open_graph(bundle / manifest.components[component].file).graph, manifest)


def test_every_matrix_of_an_exported_decoder_is_found_and_one_is_its_head(smolvlm_bundle: Path) -> None:
    manifest = read_manifest(smolvlm_bundle)
    graph = open_graph(smolvlm_bundle / manifest.components["decoder"].file).graph
    matrices = [name for name, value in graph.initializers.items() if value.shape is not None and len(value.shape) == 2]
    sites = surveyed(smolvlm_bundle, "decoder")
    assert sorted(site.name for site in sites) == sorted(matrices)
    assert [site.num_outputs for site in sites if site.kind == "head"] == [manifest.decoder.vocab_size]
    assert all(site.rows is None for site in sites)


def test_rows_of_a_tower_are_its_patches_and_those_of_a_connector_its_features(smolvlm_bundle: Path) -> None:
    manifest = read_manifest(smolvlm_bundle)
    sites = surveyed(smolvlm_bundle, "vision_encoder")
    _, _, height, width = manifest.components["vision_encoder"].inputs[0].shape
    assert {site.rows for site in sites if "encoder" in site.name} == {height // 8 * (width // 8)}  # patches of 8 px
    assert {site.rows for site in sites if "connector" in site.name} == {manifest.image_prompt.tokens_per_tile}


def test_rows_of_a_text_tower_are_its_longest_text_and_its_projection_meets_one(clip_bundle: Path) -> None:
    sites = surveyed(clip_bundle, "text_encoder")
    longest = read_manifest(clip_bundle).dual.max_text_tokens
    assert {site.rows for site in sites if site.kind == "linear" and "encoder.layers" in site.name} == {longest}
    assert [site.rows for site in sites if site.name == "text_projection.weight"] == [1]


def test_a_table_is_constant_where_the_graph_holds_the_ids(model_of, rng, clip_bundle: Path) -> None:
    manifest = read_manifest(clip_bundle)
    weights = {"t": rng.standard_normal((30, 64)).astype(np.float32), "fixed": np.arange(4)}
    for ids, kind in (("ids", "table"), ("fixed", "constant table")):
        model = model_of({"ids": (ir.DataType.INT64, ["B", "T"])}, [("Gather", ["t", ids], "y", {})], weights, ["y"])
        (site,) = survey("text_encoder", model.graph, manifest)
        assert (site.kind, site.num_inputs, site.num_outputs, site.is_table) == (kind, 64, 30, True)


def test_a_graph_without_weights_is_refused(model_of, clip_bundle: Path) -> None:
    model = model_of({"x": (ir.DataType.FLOAT, ["M", 4])}, [("Relu", ["x"], "y", {})], {}, ["y"])
    with pytest.raises(QuantizationError, match="nothing can be made smaller"):
        survey("text_encoder", model.graph, read_manifest(clip_bundle))
