"""A decoder cut between layers: each part is a graph of its own, fed with the hidden states that the one before gave.

    inputs_embeds ── layers 0-7 ── layers 8-15 ── norm, head ── logits
                                 ↓
    inputs_embeds ── layers 0-7 ── hidden_states        inputs_embeds ── layers 8-15 ── norm, head ── logits

Export gives the values at which a decoder can be cut names of their own; whatever is done to weights afterwards leaves
them where they are. So a graph is cut once its weights are what they will be, and before operators are joined.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from bundle import tensors
from bundle.errors import QuantizationError
from bundle.manifest import Segment
from bundle.states import State
from graphs.store import drop_unused


def hidden_name(layer: int) -> str:
    """Return the name of the hidden states [B, T, D] that a layer reads and the one before gives."""
    return f"hidden_states.{layer}"


def queries_name(layer: int) -> str:
    """Return the name of a layer's rotated queries [B, T, H*C]."""
    return f"rotated_queries.{layer}"


def keys_name(layer: int) -> str:
    """Return the name of a layer's rotated keys of the new tokens [B, T, K*C]."""
    return f"rotated_keys.{layer}"


def cut_segment(model: ir.Model, segment: Segment, states: Sequence[State]) -> None:
    """Leave of a whole decoder the layers of one segment, in place.

    Args:
        model: As export wrote it, whatever its weights are now.
        segment: Its layers, inputs and outputs.
        states: Of the segment's layers.

    Raises:
        QuantizationError: The graph does not name the places to cut at.
    """
    graph = model.graph
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    if segment.first_layer:
        embeds = _named(values, tensors.INPUTS_EMBEDS)
        ir.convenience.replace_all_uses_with(_named(values, hidden_name(segment.first_layer)), embeds)
    sources = {
        tensors.HIDDEN_STATES: hidden_name(segment.end_layer),
        tensors.QUERIES: queries_name(segment.end_layer - 1),
        tensors.KEYS: keys_name(segment.end_layer - 1),
    }
    wanted = [spec.name for spec in (*segment.outputs, *segment.optional_outputs)]
    outputs = [_output(values, name, sources.get(name, name)) for name in wanted]
    outputs += [_named(values, state.output) for state in states]
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    _shape_outputs(outputs, segment)
    drop_unused(model)
    taken = {spec.name for spec in (*segment.inputs, *segment.optional_inputs)} | {state.input for state in states}
    for value in [value for value in graph.inputs if value.name not in taken]:
        graph.inputs.remove(value)


def _named(values: dict[str, ir.Value], name: str) -> ir.Value:
    if name not in values:
        raise QuantizationError(
            f"the decoder's graph has no value {name} to be cut at: it was exported by an older version; export the "
            "checkpoint again"
        )
    return values[name]


def _output(values: dict[str, ir.Value], name: str, source: str) -> ir.Value:
    value = _named(values, source)
    value.name = name
    return value


def _shape_outputs(outputs: Sequence[ir.Value], segment: Segment) -> None:
    specs = (*segment.outputs, *segment.optional_outputs)
    for value, spec in zip(outputs, specs, strict=False):
        value.shape = ir.Shape(spec.shape)
        value.type = ir.TensorType(ir.DataType.FLOAT)
