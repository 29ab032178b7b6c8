"""A portable graph as TensorRT's parser wants it, made when an engine is built and written nowhere.

- The cache's length is a number: "The KV cache tensor must have a static sequence length dimension".
- What callers may do without is left out: TensorRT computes every output at every run.
- A table of int8 rows is dequantized before rows are looked up, not after: codes may go nowhere but into a
  DequantizeLinear. The engine keeps them in 8 bits; ONNX Runtime would dequantize the table at every call.
- Attention gets the forms of `tensorrt_attention`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bundle.errors import BundleFormatError
from bundle.states import ROWS
from graphs.lowering.plain import write_plainly
from graphs.lowering.tensorrt_attention import fit_attention
from graphs.store import add_initializer, drop_unused, make_node, open_graph, replace_node

_LENGTHS_INPUT = 6
"""`nonpad_kv_seqlen` of the standard Attention."""


def engine_graph(source: Path, outputs: Collection[str], cache_rows: int, *, is_plain: bool = False) -> bytes:
    """Return a serialized graph whose weights stay in the files beside its source.

    Args:
        source: A portable graph of a bundle.
        outputs: Names of those that stay.
        cache_rows: S.
        is_plain: In operators of opset 20.

    Raises:
        BundleFormatError: Its attention is told of lengths in a way that TensorRT ignores, or it cannot be written so.
    """
    serialized: bytes = ir.to_proto(engine_model(source, outputs, cache_rows, is_plain=is_plain)).SerializeToString()
    return serialized


def engine_model(source: Path, outputs: Collection[str], cache_rows: int, *, is_plain: bool = False) -> ir.Model:
    """Return what `engine_graph` serializes; arguments and errors are its own."""
    model = open_graph(source)
    _refuse_old_form(model.graph, source)
    _keep_outputs(model, outputs)
    _fix_rows(model.graph, cache_rows)
    _dequantize_tables(model.graph)
    if is_plain:
        write_plainly(model)
    else:
        fit_attention(model.graph)
    drop_unused(model)
    return model


def unread_inputs(source: Path) -> list[str]:
    """Return the names of a graph's inputs that it does not read, as a text encoder may that needs no mask."""
    return [str(value.name) for value in open_graph(source).graph.inputs if not value.uses()]


def _refuse_old_form(graph: ir.Graph, source: Path) -> None:
    for node in graph:
        if node.domain or node.op_type != "Attention":
            continue
        is_causal = "is_causal" in node.attributes and bool(node.attributes["is_causal"].as_int())
        if is_causal or (len(node.inputs) > _LENGTHS_INPUT and node.inputs[_LENGTHS_INPUT] is not None):
            raise BundleFormatError(
                f"{source}: {node.name} is told what a token sees by a length, which TensorRT ignores: an engine would "
                "answer nonsense. The bundle is of an older version; export the checkpoint again with --dialect "
                "portable"
            )


def _keep_outputs(model: ir.Model, outputs: Collection[str]) -> None:
    kept = [value for value in model.graph.outputs if value.name in outputs]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)
    drop_unused(model)


def _fix_rows(graph: ir.Graph, cache_rows: int) -> None:
    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        if value.shape is not None:
            sizes = [cache_rows if str(size) == ROWS else size for size in value.shape]
            value.shape = ir.Shape(sizes)


@dataclass(frozen=True)
class _Rows:
    """One look-up of int8 rows, as `quant.weights.gather_blocks.GatherRows` writes it."""

    codes: ir.Value
    scales: ir.Value
    ids: ir.Value
    product: ir.Node


def _dequantize_tables(graph: ir.Graph) -> None:
    for node in list(graph):
        if (found := _try_rows(node)) is not None:
            name = str(node.outputs[0].name)
            table = make_node(
                "DequantizeLinear", [found.codes, _flat(graph, found.scales)], f"{name}.table", {"axis": 0}
            )
            rows = make_node("Gather", [table.outputs[0], found.ids], f"{name}.of_table", {"axis": 0})
            replace_node(graph, found.product, [table, rows])


def _try_rows(node: ir.Node) -> _Rows | None:
    """Return the look-up that a product ends; None for any other node."""
    if node.op_type != "Mul":
        return None
    numbers, steps = (value.producer() if value is not None else None for value in node.inputs)
    if numbers is None or steps is None or (numbers.op_type, steps.op_type) != ("DequantizeLinear", "Gather"):
        return None
    codes = numbers.inputs[0].producer() if numbers.inputs[0] is not None else None
    if codes is None or codes.op_type != "Gather":
        return None
    table, ids, scales = codes.inputs[0], codes.inputs[1], steps.inputs[0]
    if table is None or ids is None or scales is None:
        return None
    return _Rows(table, scales, ids, node)


def _flat(graph: ir.Graph, scales: ir.Value) -> ir.Value:
    """Return scales [V, 1] as [V]; of a row of zeros, whose scale float16 has none for, some scale above 0."""
    if scales.const_value is None:
        raise BundleFormatError(f"{scales.name} holds no numbers; quantize the fp32 bundle again")
    flat = scales.const_value.numpy().reshape(-1)
    least = np.finfo(flat.dtype).smallest_subnormal
    return add_initializer(graph, f"{scales.name}.flat", np.maximum(flat, least))
