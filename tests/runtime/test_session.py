from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.directory import Bundle, seal
from bundle.errors import BundleFileError, MachineError, SignatureError
from bundle.manifest import TensorSpec
from runtime.graph import Graph
from runtime.session import Session
from runtime.settings import RuntimeSettings
from serving.settings import EngineSettings


def with_component(model: Any, name: str, **changes: Any) -> Bundle:
    """Return the model's bundle with one graph's entry changed."""
    components = model.bundle.manifest.components
    return model.with_manifest(components={**components, name: components[name].model_copy(update=changes)}).bundle


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"name": "pixel_values"}, "inputs are"),
        ({"dtype": "int32"}, "input_ids is int64"),
        ({"shape": ("B",)}, r"input_ids is int64 \['B', 'T'\]"),
        ({"shape": ("B", 7)}, r"the manifest says int64 \['B', 7\]"),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says_is_refused(tiny_model, settings, change, found) -> None:
    spec = tiny_model.bundle.manifest.components["embed_tokens"].inputs[0]
    changed = TensorSpec.model_validate({**spec.model_dump(), **change})
    with pytest.raises(SignatureError, match=found):
        Session(with_component(tiny_model, "embed_tokens", inputs=(changed,)), "embed_tokens", settings)


@pytest.mark.parametrize("change", [{"output": "elsewhere"}, {"shape": ("B", 2, "S", 16)}, {"dtype": "float16"}])
def test_a_decoder_whose_states_are_not_those_of_the_manifest_is_refused(tiny_model, settings, change) -> None:
    first, *others = tiny_model.bundle.manifest.states
    states = (first.model_copy(update=change), *others)
    with pytest.raises(SignatureError, match=r"decoder\.onnx"):
        Session(tiny_model.with_manifest(states=states).bundle, "decoder", settings)


def test_a_file_that_is_not_a_graph_is_refused_by_name(tiny_model, settings, tmp_path: Path) -> None:
    (tmp_path / "embed_tokens.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleFileError, match=r"embed_tokens\.onnx"):
        Session(seal(tmp_path, tiny_model.bundle.manifest), "embed_tokens", settings)


def test_a_graph_that_the_manifest_does_not_list_is_not_opened(tiny_model, settings) -> None:
    files = {name: record for name, record in tiny_model.bundle.manifest.files.items() if name != "decoder.onnx"}
    with pytest.raises(BundleFileError, match=r"decoder\.onnx is not among the files"):
        Session(tiny_model.with_manifest(files=files).bundle, "decoder", settings)


def test_a_provider_that_this_runtime_lacks_is_a_clear_error(tiny_model) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    with pytest.raises(MachineError, match="has no CUDAExecutionProvider"):
        Session(tiny_model.bundle, "embed_tokens", EngineSettings(provider="cuda"))


@pytest.fixture
def asking(model_of, tmp_path: Path) -> Bundle:
    """A bundle whose graph gives y = -x, takes a bias that it has a value for, and gives more only where asked."""
    import onnx_ir as ir

    from bundle.manifest import Component, Manifest
    from graphs.store import save_graph

    model = model_of(
        {"x": (ir.DataType.FLOAT, ["B", 2])},
        [("Neg", ["x"], "y", {}), ("Add", ["x", "bias"], "more", {})],
        {"bias": np.array([[1, 2]], np.float32)},
        ["y", "more"],
    )
    model.graph.inputs.append(model.graph.initializers["bias"])
    for value in model.graph.outputs:
        value.shape = ir.Shape(["B", 2])
    save_graph(model, tmp_path / "vision_encoder.onnx")

    def spec(name: str, rows: int | str = "B") -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=(rows, 2))

    component = Component(
        file="vision_encoder.onnx",
        role="vision_encoder",
        scheme="fp32",
        inputs=(spec("x"),),
        outputs=(spec("y"),),
        optional_inputs=(spec("bias", 1),),
        optional_outputs=(spec("more"),),
        weight_bytes=0,
    )
    facts = dict.fromkeys(("name", "source", "source_sha256", "created_by", "model_type"), "t")
    manifest = Manifest(**facts, task="dual-encoder", dialect="contrib", components={"vision_encoder": component})
    return seal(tmp_path, manifest)


def test_optional_outputs_come_where_they_are_asked_for_and_optional_inputs_may_be_left_out(asking, settings) -> None:
    session, x = Session(asking, "vision_encoder", settings), np.array([[3, 4]], np.float32)
    assert session.run({"x": x}).keys() == {"y"}
    np.testing.assert_array_equal(session.run({"x": x}, ["more"])["more"], [[4, 6]])
    other = {"x": x, "bias": np.zeros((1, 2), np.float32)}
    np.testing.assert_array_equal(session.run(other, ["more"])["more"], [[3, 4]])
    with pytest.raises(SignatureError, match="no optional output scores, only more"):
        session.run({"x": x}, ["scores"])


def test_an_optional_output_that_the_graph_lacks_is_refused(asking, settings) -> None:
    component = asking.manifest.components["vision_encoder"].model_copy(update={"optional_outputs": ()})
    manifest = asking.manifest.model_copy(update={"components": {"vision_encoder": component}})
    with pytest.raises(SignatureError, match="outputs are"):
        Session(Bundle(asking.directory, manifest), "vision_encoder", settings)


def test_a_run_that_fails_is_told_with_the_graphs_name(tiny_model) -> None:
    graph = Graph(tiny_model.bundle.graph_path("embed_tokens"), RuntimeSettings(intra_threads=1))
    with pytest.raises(MachineError, match=r"embed_tokens\.onnx: a run failed"):
        graph.run({"input_ids": np.array([[1_000_000]])})
