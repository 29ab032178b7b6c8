from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bundle.directory import read_manifest
from bundle.errors import QuantizationError
from export.exporter import export_checkpoint
from graphs.labels import Label
from graphs.store import open_graph
from quant.planning.survey import Site, survey, survey_bundle


def surveyed(bundle: Path, component: str) -> tuple[Site, ...]:
    return survey(open_graph(bundle / read_manifest(bundle).components[component].file).graph)


def rows_of(sites: tuple[Site, ...], part: str) -> set[int | None]:
    """Rows of the linear layers whose names have this part."""
    return {site.rows for site in sites if not site.is_table and part in site.name}


def test_every_matrix_of_an_exported_decoder_is_found_and_one_is_its_head(smolvlm_bundle: Path) -> None:
    manifest = read_manifest(smolvlm_bundle)
    graph = open_graph(smolvlm_bundle / manifest.components["decoder"].file).graph
    matrices = [name for name, value in graph.initializers.items() if value.shape is not None and len(value.shape) == 2]
    sites = surveyed(smolvlm_bundle, "decoder")
    assert sorted(site.name for site in sites) == sorted(matrices)
    assert [site.num_outputs for site in sites if site.kind == "head"] == [manifest.decoder.vocab_size]
    assert all(site.rows is None for site in sites)


def test_layers_as_wide_as_the_vocabulary_are_no_heads(checkpoints: ModuleType, tmp_path: Path) -> None:
    vocabulary = checkpoints.smolvlm_config()["text_config"]["vocab_size"]
    config = checkpoints.smolvlm_config({"intermediate_size": vocabulary})
    checkpoints.save_smolvlm(tmp_path / "checkpoint", config)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle")
    wide = [site for site in surveyed(tmp_path / "bundle", "decoder") if site.num_outputs == vocabulary]
    assert len(wide) > 1
    assert [site.name for site in wide if site.kind == "head"] == ["lm_head.weight"]


def test_rows_of_a_tower_are_its_patches_and_those_of_a_connector_its_features(smolvlm_bundle: Path) -> None:
    manifest = read_manifest(smolvlm_bundle)
    sites = surveyed(smolvlm_bundle, "vision_encoder")
    _, _, height, width = manifest.components["vision_encoder"].inputs[0].shape
    assert rows_of(sites, "encoder") == {height // 8 * (width // 8)}  # patches of 8 px
    assert rows_of(sites, "connector") == {manifest.image_prompt.tokens_per_tile}


def test_a_class_token_is_a_row_and_a_projection_of_it_meets_one(clip_bundle: Path) -> None:
    sites = surveyed(clip_bundle, "vision_encoder")
    assert rows_of(sites, "encoder.layers") == {32 // 8 * (32 // 8) + 1}
    assert rows_of(sites, "visual_projection") == {1}


def test_a_learned_query_is_one_row_of_many_that_it_looks_at(bundle_of: Callable[[str, str], Path]) -> None:
    sites = surveyed(bundle_of("siglip", "contrib"), "vision_encoder")
    found = {part: rows_of(sites, f"head.{part}") for part in ("attention.q", "attention.k", "attention.v", "mlp")}
    assert found == {"attention.q": {1}, "attention.k": {16}, "attention.v": {16}, "mlp": {1}}
    assert rows_of(sites, "head.attention.out_proj") == {1}


def test_the_last_layer_of_a_tower_without_a_last_norm_meets_the_tower_s_rows(
    bundle_of: Callable[[str, str], Path],
) -> None:
    sites = surveyed(bundle_of("llava-clip-llama", "contrib"), "vision_encoder")
    assert rows_of(sites, "encoder.layers") == {17}
    assert rows_of(sites, "multi_modal_projector") == {16}  # without the class token


def test_rows_of_a_text_tower_are_its_longest_text_and_its_projection_meets_one(clip_bundle: Path) -> None:
    sites = surveyed(clip_bundle, "text_encoder")
    assert rows_of(sites, "encoder.layers") == {read_manifest(clip_bundle).dual.max_text_tokens}
    assert rows_of(sites, "text_projection") == {1}


@pytest.mark.parametrize("role", ["table", "tied table", "constant table"])
def test_a_table_is_of_the_kind_that_its_label_says(model_of: Any, rng: np.random.Generator, role: Any) -> None:
    weights = {"t": rng.standard_normal((30, 64)).astype(np.float32)}
    model = model_of({"ids": (ir.DataType.INT64, ["B", "T"])}, [("Gather", ["t", "ids"], "y", {})], weights, ["y"])
    Label(role).write(model.graph.initializers["t"])
    assert survey(model.graph) == (Site("t", role, 64, 30),)
    assert survey(model.graph)[0].is_table


@pytest.mark.parametrize(("is_ternary", "kind"), [(True, "ternary experts"), (False, "experts")])
def test_experts_are_ternary_where_their_numbers_are(
    small_graphs: ModuleType, rng: np.random.Generator, is_ternary: bool, kind: str
) -> None:
    numbers = [rng.standard_normal(shape).astype(np.float32) for shape in ((64, 4), (4, 64, 64), (4, 64, 32))]
    if is_ternary:
        numbers[1:] = [np.sign(stacked) for stacked in numbers[1:]]
    graph = small_graphs.build_mixture("e", *numbers).graph
    for name, role in (
        ("layers.0.mlp.router.weight", "router"),
        ("e.gate_up_proj", "experts"),
        ("e.down_proj", "experts"),
    ):
        Label(role).write(graph.initializers[name])
    router, experts = survey(graph)
    assert router == Site("layers.0.mlp.router.weight", "router", 64, 4)
    assert experts == Site("e", kind, 64, 96, copies=4, num_hidden=32)


@pytest.mark.parametrize("component", ["vision_encoder", "embed_tokens", "decoder"])
def test_a_bundle_of_an_older_version_is_to_be_exported_again(smolvlm_bundle: Path, component: str) -> None:
    graph = open_graph(smolvlm_bundle / f"{component}.onnx").graph
    for value in graph.initializers.values():
        value.metadata_props.clear()
    expected = "holds no layer labels: it was exported by an older version; export the checkpoint again"
    with pytest.raises(QuantizationError, match=expected):
        survey_bundle({component: graph})


def test_experts_without_labels_are_refused_though_their_numbers_are_known(
    small_graphs: ModuleType, rng: np.random.Generator
) -> None:
    stacked = (np.sign(rng.standard_normal(shape)).astype(np.float32) for shape in ((4, 64, 64), (4, 64, 32)))
    graph = small_graphs.build_mixture("e", np.ones((64, 4), np.float32), *stacked).graph
    Label("router").write(graph.initializers["layers.0.mlp.router.weight"])
    with pytest.raises(QuantizationError, match=r"e\.gate_up_proj holds no layer labels"):
        survey(graph)


def test_a_bundle_without_layers_is_refused_and_a_tower_without_any_is_left(model_of: Any, clip_bundle: Path) -> None:
    graph = model_of({"x": (ir.DataType.FLOAT, ["M", 4])}, [("Relu", ["x"], "y", {})], {}, ["y"]).graph
    with pytest.raises(QuantizationError, match=r"vision_encoder: no linear layer .* nothing can be made smaller"):
        survey_bundle({"vision_encoder": graph})
    text = open_graph(clip_bundle / "text_encoder.onnx").graph
    sites = survey_bundle({"vision_encoder": graph, "text_encoder": text})
    assert sites["vision_encoder"] == ()
    assert sites["text_encoder"] == survey(text)
