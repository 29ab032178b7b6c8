"""Which dialect a bundle's graphs are in, by the operators that they hold."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from bundle.directory import Bundle
from graphs.store import open_graph

_STANDARD = ("", "ai.onnx")
"""Domains of ONNX's own operators."""


def portable_where_standard(bundle: Bundle) -> Bundle:
    """Return a bundle as one of the portable dialect where all of its operators are ONNX's own, else as it is.

    Encoders that others exported are of such graphs. Their bundles say "contrib": what that dialect has beside is open
    to their variants, and for TensorRT there are those that need none of it.
    """
    if bundle.manifest.dialect == "portable":
        return bundle
    if not all(_is_standard(open_graph(bundle.graph_path(name))) for name in bundle.manifest.components):
        return bundle
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"dialect": "portable"}))


def _is_standard(model: ir.Model) -> bool:
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return not model.functions and all(node.domain in _STANDARD for node in nodes)
