"""Nodes are read without a graph library, and equal what that library says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from bundle.errors import BundleFileError
from bundle.graph_nodes import graph_nodes


def test_nodes_are_those_that_the_library_reads(bundle_of: Callable[..., Path]) -> None:
    path = bundle_of("clip", "portable") / "text_encoder.onnx"
    expected = onnx.load(path, load_external_data=False).graph.node
    found = graph_nodes(path)
    assert len(found) == len(expected) > 10
    for node, other in zip(found, expected, strict=True):
        assert (node.op_type, node.domain) == (other.op_type, other.domain)
        assert (node.inputs, node.outputs) == (tuple(other.input), tuple(other.output))
        assert node.attributes == {each.name for each in other.attribute}
        assert node.notes == {each.key for each in other.metadata_props}


def test_what_is_no_graph_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(BundleFileError, match=r"m\.onnx is not an ONNX graph"):
        graph_nodes(tmp_path / "m.onnx")
    with pytest.raises(BundleFileError, match="cannot be read"):
        graph_nodes(tmp_path / "none.onnx")
