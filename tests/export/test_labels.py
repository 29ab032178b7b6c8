"""What export writes beside every weight, held against the checkpoint and against runs of the graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from bundle.directory import read_manifest
from bundle.manifest import Component, Manifest
from commands.shipped import CHECKPOINTS
from export.architectures import load_family
from export.checkpoint import Checkpoint, StoredTensor
from export.exporter import export_checkpoint
from export.graph import build_model, write_model
from export.nn.contrib import Contrib
from export.nn.dialects import DIALECTS
from export.weights import WeightSource
from graphs.experts import find_experts
from graphs.labels import Label, unlabelled
from graphs.layers import find_linears, find_tables
from graphs.store import open_graph


def save_mixture(folder: Path) -> None:
    from reference import mote

    mote.write_upcycled(CHECKPOINTS["vlm"], folder, mote.ExpertShape(4, 88, "float"))


BUCKETED = {"image_size": 62, "patch_size": 2}  # 31 patches a side: some positions round into the bucket below
SAVES: Mapping[str, Callable[[ModuleType, Path], Any]] = {
    "smolvlm": lambda c, folder: c.save_smolvlm(folder),
    "smolvlm-bucketed": lambda c, folder: c.save_smolvlm(folder, c.smolvlm_config(vision=BUCKETED, scale_factor=1)),
    "llava-clip": lambda c, folder: c.save_llava(folder),
    "llava-siglip": lambda c, folder: c.save_llava(folder, c.llava_config("siglip", "qwen2")),
    "llava-full": lambda c, folder: c.save_llava(
        folder, c.llava_config("clip", vision_feature_select_strategy="full", vision_feature_layer=[1, -1])
    ),
    "clip": lambda c, folder: c.save_clip(folder),
    "siglip": lambda c, folder: c.save_siglip(folder),
    "mixture": lambda _, folder: save_mixture(folder),
}


class Bundle:
    """A bundle's graphs and manifest."""

    def __init__(self, folder: Path) -> None:
        self.manifest: Manifest = read_manifest(folder)
        self.graphs = {name: open_graph(folder / part.file).graph for name, part in self.manifest.components.items()}

    def roles(self, component: str) -> Counter[str]:
        """How many weights of a graph have each role."""
        labels = (Label.try_read(value) for value in self.graphs[component].initializers.values())
        return Counter(label.role for label in labels if label is not None)


@pytest.fixture(scope="module", params=[(name, dialect) for name in SAVES for dialect in DIALECTS], ids="-".join)
def bundle(request: pytest.FixtureRequest, checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    name, dialect = request.param
    folder = tmp_path_factory.mktemp("labels")
    SAVES[name](checkpoints, folder / "checkpoint")
    export_checkpoint(folder / "checkpoint", folder / "bundle", dialect=dialect)
    return Bundle(folder / "bundle")


def one_of_each(component: Component, manifest: Manifest) -> dict[str, np.ndarray]:
    """One image, or the longest text, of random numbers."""
    texts = manifest.dual.max_text_tokens if manifest.dual else 0
    sizes = {"I": 1, "B": 1, "T": texts}
    generator = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for spec in component.inputs:
        shape = [sizes[side] if isinstance(side, str) else side for side in spec.shape]
        if spec.dtype == "float32":
            feeds[spec.name] = generator.standard_normal(shape).astype(np.float32)
        else:
            feeds[spec.name] = np.ones(shape, np.int64)
    return feeds


def measured_rows(graph: ir.Graph, feeds: dict[str, np.ndarray], run: Any) -> dict[str, int]:
    """Run a graph with the input of every linear layer as one more output, and count its rows."""
    linears = find_linears(graph)
    num_own = len(graph.outputs)
    for linear in linears:
        linear.input.type = ir.TensorType(ir.DataType.FLOAT)
        if linear.input not in graph.outputs:
            graph.outputs.append(linear.input)
    found = run(ir.Model(graph, ir_version=11), **feeds)
    seen = dict(zip(graph.outputs, found, strict=True))
    del graph.outputs[num_own:]
    return {linear.name: seen[linear.input].size // linear.num_inputs for linear in linears}


def test_every_layer_of_every_graph_is_labelled(bundle: Bundle) -> None:
    assert [weight for graph in bundle.graphs.values() for weight in unlabelled(graph)] == []


def test_nothing_but_layers_is_labelled(bundle: Bundle) -> None:
    for name, graph in bundle.graphs.items():
        layers = [layer.weight for layer in (*find_linears(graph), *find_tables(graph))]
        layers += [weight for experts in find_experts(graph) for weight in (experts.first, experts.second)]
        assert bundle.roles(name).total() == len(set(layers))


def test_rows_of_an_encoder_are_those_that_meet_each_layer(bundle: Bundle, run: Any) -> None:
    encoders = [name for name in bundle.graphs if name in ("vision_encoder", "text_encoder")]
    for name in encoders:
        feeds = one_of_each(bundle.manifest.components[name], bundle.manifest)
        measured = measured_rows(bundle.graphs[name], feeds, run)
        assert {linear.name: Label.read(linear.weight).rows for linear in find_linears(bundle.graphs[name])} == measured
    assert encoders


def test_a_decoder_has_one_head_and_no_rows(bundle: Bundle) -> None:
    if bundle.manifest.decoder is None:
        assert "decoder" not in bundle.graphs
        return
    labels = {linear.name: Label.read(linear.weight) for linear in find_linears(bundle.graphs["decoder"])}
    assert [name for name, label in labels.items() if label.role == "head"] == ["lm_head.weight"]
    assert {label.rows for label in labels.values()} == {None}


def test_a_table_looked_up_with_ids_of_the_graph_is_constant(bundle: Bundle) -> None:
    for graph in bundle.graphs.values():
        for table in find_tables(graph):
            assert (Label.read(table.weight).role == "constant table") == (table.ids not in graph.inputs)


@pytest.mark.parametrize(("dialect", "experts"), [("contrib", 8), ("portable", 0)])
def test_a_mixture_has_a_router_in_every_layer_and_experts_where_they_are_fused(
    checkpoints: ModuleType, tmp_path: Path, dialect: Any, experts: int
) -> None:
    SAVES["mixture"](checkpoints, tmp_path / "checkpoint")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", dialect=dialect)
    graph = Bundle(tmp_path / "bundle").graphs["decoder"]
    labels = {name: Label.try_read(value) for name, value in graph.initializers.items()}
    routers = [name for name, label in labels.items() if label is not None and label.role == "router"]
    assert routers == [f"model.text_model.layers.{layer}.mlp.router.weight" for layer in range(4)]
    assert sum(label == Label("experts") for label in labels.values()) == experts


def test_the_bucketed_positions_are_the_constant_table(checkpoints: ModuleType, tmp_path: Path) -> None:
    SAVES["smolvlm-bucketed"](checkpoints, tmp_path / "checkpoint")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle")
    assert Bundle(tmp_path / "bundle").roles("vision_encoder")["constant table"] == 1


def filled(folder: Path) -> tuple[Any, dict[str, ir.Model]]:
    """Plans and models of a checkpoint, their weights found and not yet written."""
    checkpoint = Checkpoint.open(folder)
    family = load_family(checkpoint.config)
    plans = family.graphs(Contrib())
    models = {name: build_model(name, plan, Contrib()) for name, plan in plans.items()}
    WeightSource(checkpoint, family, [model.graph for model in models.values()]).fill()
    return plans, models


def table_role(folder: Path) -> str:
    export_checkpoint(folder, folder.with_name("bundle"))
    (role,) = Bundle(folder.with_name("bundle")).roles("embed_tokens")
    return role


@pytest.mark.parametrize(("ties", "role"), [(True, "tied table"), (False, "table")])
def test_a_table_is_tied_where_the_checkpoint_stores_it_for_the_head_too(
    checkpoints: ModuleType, tmp_path: Path, ties: bool, role: str
) -> None:
    checkpoints.save_smolvlm(tmp_path / "checkpoint", checkpoints.smolvlm_config(tie_word_embeddings=ties))
    assert table_role(tmp_path / "checkpoint") == role


def test_a_table_is_known_as_tied_by_its_key_without_reading_a_number(
    smolvlm_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tensor: StoredTensor) -> None:
        raise AssertionError(f"{tensor} was read")

    monkeypatch.setattr(StoredTensor, "read", fail)
    _, models = filled(smolvlm_checkpoint)
    (table,) = models["embed_tokens"].graph.initializers.values()
    assert Label.read(table) == Label("tied table")


@pytest.mark.parametrize(("changed", "role"), [(False, "tied table"), (True, "table")])
def test_a_table_stored_twice_is_tied_where_both_hold_the_same_numbers(
    checkpoints: ModuleType, tmp_path: Path, changed: bool, role: str
) -> None:
    checkpoints.save_smolvlm(tmp_path / "checkpoint", checkpoints.smolvlm_config(tie_word_embeddings=False))
    file = tmp_path / "checkpoint" / "model.safetensors"
    stored = load_file(file)
    stored["lm_head.weight"] = stored["model.text_model.embed_tokens.weight"].copy()
    stored["lm_head.weight"][-1, -1] += float(changed)
    save_file(stored, file, {"format": "pt"})
    assert table_role(tmp_path / "checkpoint") == role


def test_a_graph_with_a_layer_that_has_no_label_is_not_written(smolvlm_checkpoint: Path, tmp_path: Path) -> None:
    plans, models = filled(smolvlm_checkpoint)
    forgotten = next(name for name in models["decoder"].graph.initializers if name.endswith("mlp.up_proj.weight"))
    models["decoder"].graph.initializers[forgotten].metadata_props.clear()
    with pytest.raises(TypeError, match=f"decoder: {forgotten}: .* without a label"):
        write_model(models["decoder"], tmp_path, plans["decoder"])
    assert list(tmp_path.iterdir()) == []
