"""One product where several layers read one input: the queries, keys and values of an attention, gate and up of an MLP.

    x ─┬─ q_proj ─ [RotaryEmbedding] ─┐                       ┌─ [RotaryEmbedding] ─┐
       ├─ k_proj ─ [RotaryEmbedding] ─┼─ attention   ->   x ── q_proj+k_proj+v_proj ── Split ─┼─ attention
       └─ v_proj ─────────────────────┘                       └─────────────────────┘

    x ─┬─ gate_proj ─ activation ─┐                            ┌─ activation ─┐
       └─ up_proj ────────────────┴─ Mul      ->   x ── gate_proj+up_proj ── Split ─┴─ Mul

Decoding reads every weight for one row: what a step costs beside the bytes is the number of products. Keys and values
are joined without the queries where those have another form. What adapters add to layers stays apart, behind the Split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from graphs.lowering.joining import Joiner, joined_name, producer_of, try_num_outputs
from graphs.store import CONTRIB, add_initializer

ROTARY = "RotaryEmbedding"
ATTENTION = "GroupQueryAttention"


def join_attention_layers(graph: ir.Graph) -> int:
    """Join queries, keys and values where that can be, in place, and return the number of products that are gone."""
    return _join_all(graph, _of_attentions(graph))


def join_gates(graph: ir.Graph) -> int:
    """Join gates with what they let through, in place, and return the number of products that are gone."""
    return _join_all(graph, _of_gates(graph))


def _join_all(graph: ir.Graph, found: Iterable[list[ir.Value]]) -> int:
    joiner = Joiner(graph)
    gone = 0
    for layers in list(found):
        bare = [_before_adapters(layer) for layer in layers]
        tried = [layers, layers[1:], *([bare, bare[1:]] if bare != layers else [])]
        group = next((group for group in tried if _join(graph, joiner, group)), layers[:1])
        gone += len(group) - 1
    return gone


def _before_rotary(value: ir.Value | None) -> ir.Value | None:
    """Return what a value was before its heads were turned; itself where they were not."""
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and node.op_type == ROTARY else value


def _before_adapters(layer: ir.Value) -> ir.Value:
    """Return the product of a layer to which adapters' were added, below its bias if it has one; else the layer."""
    value: ir.Value | None = layer
    node = layer.producer()
    if node is not None and node.op_type == "Add" and node.inputs[1] is not None and node.inputs[1].is_initializer():
        value = node.inputs[0]
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Add" or any(term is None or term.is_initializer() for term in node.inputs):
        return layer
    product = node.inputs[0]
    return layer if product is None or try_num_outputs(product) is None else product


def _of_attentions(graph: ir.Graph) -> Iterator[list[ir.Value]]:
    for node in graph:
        if (node.domain, node.op_type) == (CONTRIB, ATTENTION):
            found = [_before_rotary(value) for value in node.inputs[:3]]
            layers = [value for value in found if value is not None]
            if len(layers) == len(found):
                yield layers


def _of_gates(graph: ir.Graph) -> Iterator[list[ir.Value]]:
    """Yield gate and up of every Mul of an activated layer with a layer."""
    for node in graph:
        if node.op_type != "Mul" or node.domain or None in node.inputs:
            continue
        for activated, up in (node.inputs, node.inputs[::-1]):
            gate = _before_activation(activated)
            if gate is not None and up is not None and gate is not up and try_num_outputs(up) is not None:
                yield [gate, up]
                break


def _before_activation(value: ir.Value | None) -> ir.Value | None:
    """Return the layer behind an activation; None where there is none."""
    node = None if value is None else value.producer()
    if node is None:
        return None
    layers = [source for source in node.inputs if source is not None and try_num_outputs(source) is not None]
    is_activation = node.op_type in ("Mul", "Gelu", "Relu", "QuickGelu", "FastGelu")
    return layers[0] if is_activation and len(layers) == 1 else None


def _join(graph: ir.Graph, joiner: Joiner, layers: Sequence[ir.Value]) -> bool:
    sizes = [try_num_outputs(layer) for layer in layers]
    if len(set(layers)) < max(len(layers), 2) or None in sizes:
        return False
    joined = joiner.try_join(layers)
    if joined is None:
        return False
    name = joined_name([str(layer.name) for layer in layers])
    counts = add_initializer(graph, f"sizes.{'+'.join(map(str, sizes))}", np.array(sizes, np.int64))
    parts = [ir.Value(name=f"{layer.name}.part", type=layer.type, shape=layer.shape) for layer in layers]
    split = ir.node("Split", [joined, counts], {"axis": -1}, outputs=parts, name=f"{name}.split")
    graph.insert_after(producer_of(joined), split)
    ir.convenience.replace_all_uses_with(list(layers), parts)
    return True
