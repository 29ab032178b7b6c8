"""What a graph says of its weights' files is read without a graph library, and equals what that library says."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from bundle.directory import open_bundle, read_manifest, seal
from bundle.errors import BundleFileError
from bundle.external_data import external_files
from serving.models.client import load_model
from serving.models.pool import PreprocessPool
from serving.settings import EngineSettings


def outside(name: str, location: str) -> onnx.TensorProto:
    """Return a tensor whose numbers lie in a file."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def test_every_place_of_a_weight_is_looked_at(tmp_path: Path) -> None:
    branch = helper.make_graph([], "branch", [], [], [outside("b", "branch.data")])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=outside("v", "constant.data")),
        helper.make_node("If", ["t"], ["y"], then_branch=branch, else_branch=branch),
    ]
    function = helper.make_function(
        "ours", "F", [], ["z"], [helper.make_node("Constant", [], ["z"], value=outside("f", "function.data"))], []
    )
    sparse = helper.make_sparse_tensor(outside("s", "sparse.data"), numpy_helper.from_array(np.arange(4), "i"), [8])
    graph = helper.make_graph(nodes, "g", [], [], [outside("w", "weights.data")], sparse_initializer=[sparse])
    model = helper.make_model(graph, functions=[function])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    names = ("branch", "constant", "function", "sparse", "weights")
    assert external_files(tmp_path / "m.onnx") == {f"{name}.data" for name in names}


@pytest.mark.parametrize("bits", [32, 35, 60])
def test_a_field_whose_number_only_others_cut_short_is_refused(tmp_path: Path, bits: int) -> None:
    graph = helper.make_graph([], "g", [], [], [outside("w", "hidden.data")]).SerializeToString()
    tag = bytearray()
    left = (7 << 3 | 2) + (1 << bits)
    while left > 127:
        tag.append(left & 127 | 128)
        left >>= 7
    tag.append(left)
    assert len(graph) < 128
    (tmp_path / "m.onnx").write_bytes(bytes(tag) + bytes([len(graph)]) + graph)
    with pytest.raises(BundleFileError, match="more than 29 bits"):
        external_files(tmp_path / "m.onnx")


def test_exported_graphs_name_the_file_beside_them(smolvlm_bundle: Path) -> None:
    for path in smolvlm_bundle.glob("*.onnx"):
        expected = {
            entry.value
            for tensor in onnx.load(path, load_external_data=False).graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert external_files(path) == expected == {f"{path.name}.data"}


@given(st.binary(max_size=200), st.integers(0, 3000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_bytes_that_are_no_graph_are_refused_or_name_nothing(tmp_path: Path, smolvlm_bundle, noise, at) -> None:
    content = (smolvlm_bundle / "embed_tokens.onnx").read_bytes()
    for damaged in (noise, content[:at], content[:at] + noise + content[at:]):
        (tmp_path / "m.onnx").write_bytes(damaged)
        with contextlib.suppress(BundleFileError):  # and nothing else
            assert all(isinstance(name, str) for name in external_files(tmp_path / "m.onnx"))


def test_deep_nesting_is_refused_and_not_followed_for_ever(tmp_path: Path) -> None:
    inner = b""
    for _ in range(200):  # graph in attribute in node in graph ...
        for number in (6, 5, 1):
            length, prefix = len(inner), bytearray()
            while length > 127:
                prefix.append(length & 127 | 128)
                length >>= 7
            inner = bytes([number << 3 | 2, *prefix, length]) + inner
    (tmp_path / "m.onnx").write_bytes(b"\x3a" + b"\xff\xff\x7f" + inner)
    with pytest.raises(BundleFileError):
        external_files(tmp_path / "m.onnx")


@pytest.mark.parametrize("location", ["elsewhere.data", "../decoder.onnx.data", "/etc/passwd", "./decoder.onnx.data"])
def test_a_graph_whose_weights_lie_in_an_unlisted_file_is_refused(
    smolvlm_bundle: Path, tmp_path: Path, location: str
) -> None:
    copy = Path(shutil.copytree(smolvlm_bundle, tmp_path / "copy"))
    model = onnx.load(copy / "decoder.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (copy / "decoder.onnx").write_bytes(model.SerializeToString())
    seal(copy, read_manifest(copy))
    with pytest.raises(BundleFileError, match=r"is not among the files that manifest\.json lists"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "file", ["decoder.onnx.data", "tokenizer.json", "chat_template.jinja", "preprocessor.json", "generation.json"]
)
def test_a_server_opens_nothing_that_the_manifest_does_not_list(
    smolvlm_bundle: Path, tmp_path: Path, file: str
) -> None:
    copy = Path(shutil.copytree(smolvlm_bundle, tmp_path / "copy"))
    manifest = read_manifest(copy)
    kept = copy / file
    content = kept.read_bytes()
    kept.unlink()
    seal(copy, manifest)
    kept.write_bytes(content)
    settings = EngineSettings(intra_threads=1)
    with pytest.raises(BundleFileError, match=f"{file} is not among the files"):
        load_model(copy, settings, PreprocessPool(settings))
