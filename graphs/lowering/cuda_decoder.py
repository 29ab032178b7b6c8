"""A decoder as CUDA runs it fastest: float16 throughout, and nothing computed on the host (docs/cuda-form.md).

- What attention must know of the rows comes in ready (`seqlens_k`, `total_sequence_length`) in the place of
  `past_lengths`, so that no shape is computed while a step runs and the step can be captured as a CUDA graph.
- Rows are chosen by one Gather over all rows, in the place of a GatherND, whose kernel copies sizes to the device.
- The largest logit is found in the graph, so that ids come to the host and not logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bundle import tensors
from bundle.errors import QuantizationError
from bundle.states import State
from graphs.half import SINGLE, halve
from graphs.lowering.decoder import lower_decoder
from graphs.lowering.parallel_layers import ATTENTION
from graphs.lowering.skip_norms import NORMS
from graphs.store import CONTRIB, add_initializer, drop_unused, make_node, replace_node

_LENGTHS_INPUT, _TOTAL_INPUT = 5, 6
"""Of a GroupQueryAttention."""
_PAST_KEY_INPUT = 3


def lower_decoder_for_cuda(model: ir.Model, states: Sequence[State], max_positions: int) -> None:
    """Write a decoder in its CUDA form, in place.

    Args:
        model: Of the contrib dialect, quantized or not, not yet lowered.
        states: Its states.
        max_positions: Positions are below it.
    """
    graph = model.graph
    _take_lengths(graph, {state.input: state.group or 0 for state in states})
    _choose_rows(graph)
    lower_decoder(model, max_positions, "step")
    _spell_norms(graph)
    halve(graph, singles=[name for state in states if state.keeps_float32 for name in (state.input, state.output)])
    _give_choices(graph)
    drop_unused(model)
    _drop_input(graph, tensors.PAST_LENGTHS)
    _drop_input(graph, tensors.LOGITS_INDICES)
    graph.sort()


def _take_lengths(graph: ir.Graph, groups: dict[str, int]) -> None:
    """Let attention read lengths from new inputs."""
    num_groups = max(groups.values()) + 1
    shape: list[int | str] = ["B"] if num_groups == 1 else [num_groups, "B"]
    lengths = _new_input(graph, tensors.SEQLENS_K, ir.DataType.INT32, shape)
    total = _new_input(graph, tensors.TOTAL_SEQUENCE_LENGTH, ir.DataType.INT32, [])
    of_group = {group: _of_group(graph, lengths, group, num_groups) for group in sorted(set(groups.values()))}
    for node in graph:
        if (node.domain, node.op_type) == (CONTRIB, ATTENTION):
            past = node.inputs[_PAST_KEY_INPUT]
            if past is None or past.name not in groups:
                raise QuantizationError(
                    f"{node.outputs[0].name} of {graph.name} reads {'no cache' if past is None else past.name}, which "
                    "is no state but another layer's: that was measured on the CPU alone. Leave --target out"
                )
            node.replace_input_with(_LENGTHS_INPUT, of_group[groups[str(past.name)]])
            node.replace_input_with(_TOTAL_INPUT, total)


def _of_group(graph: ir.Graph, lengths: ir.Value, group: int, num_groups: int) -> ir.Value:
    if num_groups == 1:
        return lengths
    index = add_initializer(graph, f"length_group.{group}", np.array(group, np.int64))
    node = make_node("Gather", [lengths, index], f"{tensors.SEQLENS_K}.{group}", {"axis": 0})
    graph.insert_before(graph[0], node)
    return node.outputs[0]


def _choose_rows(graph: ir.Graph) -> None:
    """Norm all rows, and then choose by `logits_rows` those whose logits are wanted."""
    chosen = [node for node in graph if node.op_type == "GatherND"]
    if len(chosen) != 1 or chosen[0].inputs[0] is None:
        raise QuantizationError(
            f"{graph.name}: {len(chosen)} choices of rows; a decoder chooses once, before its last norm. Export again."
        )
    rows = _new_input(graph, tensors.LOGITS_ROWS, ir.DataType.INT64, ["B", "N"])
    hidden = chosen[0].inputs[0]
    (embeds,) = (value for value in graph.inputs if value.name == tensors.INPUTS_EMBEDS)
    width = 0 if embeds.shape is None else embeds.shape[-1]
    readers = [node for node, _ in chosen[0].outputs[0].uses()]
    norm = readers[0] if len(readers) == 1 and readers[0].op_type in NORMS else None
    flat = add_initializer(graph, "rows.flat", np.array([-1, width], np.int64))
    source = hidden if norm is None else norm.outputs[0]
    wanted = list(source.uses())
    reshaped = make_node("Reshape", [source, flat], f"{source.name}.flat")
    gathered = make_node("Gather", [reshaped.outputs[0], rows], f"{source.name}.wanted", {"axis": 0})
    if norm is None:
        replace_node(graph, chosen[0], [reshaped, gathered])
        return
    norm.replace_input_with(0, hidden)
    norm.outputs[0].shape = hidden.shape
    for node, at in wanted:
        node.replace_input_with(at, gathered.outputs[0])
    graph.insert_after(norm, [reshaped, gathered])


def _spell_norms(graph: ir.Graph) -> None:
    """Write the norms that stand alone as the operator that has a CUDA kernel: of float16, summed in float32."""
    for node in list(graph):
        if node.op_type == "RMSNormalization" and not node.domain:
            attributes = {"axis": -1, "epsilon": node.attributes["epsilon"].as_float()}
            name = f"{node.outputs[0].name}.norm"
            replace_node(graph, node, [make_node("SimplifiedLayerNormalization", node.inputs, name, attributes)])


def _give_choices(graph: ir.Graph) -> None:
    """Give logits in float32, and beside them the ids of the largest; -1 in a row with a logit that is no number.

    Nothing else is found here: what a graph can give, ONNX Runtime computes in every captured run, asked for or not,
    and its sums over a vocabulary (ReduceLogSumExp) take five milliseconds of a batch.
    """
    half = graph.outputs[0]
    half.name = f"{tensors.LOGITS}.half"
    single = make_node("Cast", [half], tensors.LOGITS, {"to": int(SINGLE)})
    shape = list(half.shape or [])
    largest = make_node("ArgMax", [half], "greedy.largest", {"axis": -1, "keepdims": 0})
    zeroed = _zeroed(graph, half, shape[-1])
    broken = make_node("IsNaN", zeroed[-1].outputs, "greedy.is_broken")
    none = add_initializer(graph, "greedy.none", np.array(-1, np.int64))
    greedy = make_node("Where", [broken.outputs[0], none, largest.outputs[0]], tensors.GREEDY_IDS)
    graph.extend([single, largest, *zeroed, broken, greedy])
    for node, dtype, sizes in ((single, SINGLE, shape), (greedy, ir.DataType.INT64, shape[:-1])):
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), ir.Shape(sizes)
    graph.outputs[0] = single.outputs[0]
    graph.outputs.append(greedy.outputs[0])


def _zeroed(graph: ir.Graph, logits: ir.Value, vocab_size: int) -> Sequence[ir.Node]:
    """Return nodes that make 0 of every row of logits [B, N, V], and NaN of one with a NaN or an infinity.

    Products with zeros, in two steps of about as many terms: one of a whole vocabulary would be a single block's work.
    """
    last = max(size for size in range(1, math.isqrt(vocab_size) + 1) if vocab_size % size == 0)
    first = vocab_size // last
    sizes = add_initializer(graph, "greedy.sizes", np.array([0, 0, last, first], np.int64))
    nodes = [make_node("Reshape", [logits, sizes], "greedy.parts")]
    for size, name in ((first, "greedy.zeroed_parts"), (last, "greedy.zeroed")):
        zeros = add_initializer(graph, f"{name}.zeros", np.zeros(size, np.float16))
        nodes.append(make_node("MatMul", [nodes[-1].outputs[0], zeros], name))
    return nodes


def _new_input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    graph.inputs.append(value)
    return value


def _drop_input(graph: ir.Graph, name: str) -> None:
    (value,) = (each for each in graph.inputs if each.name == name)
    if value.uses():
        raise QuantizationError(
            f"{graph.name} still reads {name}; its CUDA form does not. Export the checkpoint again."
        )
    graph.inputs.remove(value)
