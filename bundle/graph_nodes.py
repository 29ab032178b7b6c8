"""The nodes of a graph, read off the `.onnx` file without a graph-building library.

A server tells by them what a device's provider cannot run, before it opens the graph. The numbers of fields are those
of onnx.proto (ONNX 1.20).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bundle.errors import BundleFileError
from bundle.external_data import fields

_MODEL_GRAPH, _GRAPH_NODE, _NAME, _KEY = 7, 1, 1, 1
_INPUT, _OUTPUT, _OP_TYPE, _ATTRIBUTE, _DOMAIN, _METADATA = 1, 2, 4, 5, 7, 9


@dataclass(frozen=True)
class GraphNode:
    """One node of a graph itself, not of those inside it.

    Attributes:
        op_type: Its operator.
        domain: Of the operator; "": ONNX's own.
        inputs: Names of values; "" where one is left out.
        outputs: Likewise.
        attributes: Names of those that it has.
        notes: Keys of its metadata.
    """

    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: frozenset[str]
    notes: frozenset[str]


def graph_nodes(path: Path) -> list[GraphNode]:
    """Return the nodes of a graph.

    Raises:
        BundleFileError: The file cannot be read, or is not a serialized graph.
    """
    try:
        content = memoryview(path.read_bytes())
        return [_node(node) for graph in _inner(content, _MODEL_GRAPH) for node in _inner(graph, _GRAPH_NODE)]
    except OSError as error:
        raise BundleFileError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise BundleFileError(f"{path} is not an ONNX graph ({error}). Export the checkpoint again.") from error


def _node(message: memoryview) -> GraphNode:
    return GraphNode(
        "".join(_texts(message, _OP_TYPE)),
        "".join(_texts(message, _DOMAIN)),
        tuple(_texts(message, _INPUT)),
        tuple(_texts(message, _OUTPUT)),
        frozenset(name for each in _inner(message, _ATTRIBUTE) for name in _texts(each, _NAME)),
        frozenset(key for each in _inner(message, _METADATA) for key in _texts(each, _KEY)),
    )


def _inner(message: memoryview, number: int) -> Iterator[memoryview]:
    return (content for found, content in fields(message) if found == number)


def _texts(message: memoryview, number: int) -> Iterator[str]:
    return (bytes(content).decode() for content in _inner(message, number))
