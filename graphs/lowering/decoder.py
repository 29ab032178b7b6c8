"""A decoder of the contrib dialect as ONNX Runtime's CPU runs it fastest: the same function in fewer operators.

Export writes layers under the names of the checkpoint, and quantization plans by these. Once a variant's weights are
what they will be, the passes of this folder make one operator of several, each in a file of its own
(docs/decisions/0019 has what was measured).
"""

from __future__ import annotations

import onnx_ir as ir

from bundle.manifest import Phase
from graphs.causal import make_causal
from graphs.lowering.coded_cache import CodedCache, store_codes
from graphs.lowering.last_queries import drop_last_queries
from graphs.lowering.packed_attention import pack_attention
from graphs.lowering.parallel_layers import join_attention_layers, join_gates
from graphs.lowering.rotary_in_attention import turn_inside_attention
from graphs.lowering.silu import join_silu
from graphs.lowering.skip_norms import join_sums_and_norms
from graphs.store import CONTRIB, drop_unused


def lower_decoder(model: ir.Model, max_positions: int, phase: Phase = "any", cache: CodedCache | None = None) -> None:
    """Write a decoder in fewer operators, in place; inputs, outputs and states stay what they are.

    Rotary embedding moves into attention where a graph runs steps alone: on a prompt that finds an empty cache, the
    CPU's GroupQueryAttention reads the first position of the first sequence and takes all others to follow it (ONNX
    Runtime 1.31), and positions may have gaps.

    With many rows some of the joined operators are slower than what they join: a Split copies what was apart before,
    and the skip-norm's kernel is the slower one. So a graph for prompts keeps gate and up, and sums and norms, apart;
    one of W8A8, which is chosen for prompts and runs steps as well, keeps sums and norms apart.

    Args:
        model: Of the contrib dialect, quantized or not.
        max_positions: Positions are below it.
        phase: When the graph runs.
        cache: Where it keeps codes; states are of another type and shape then.
    """
    graph = model.graph
    graph.opset_imports[CONTRIB] = 1
    is_for_prompts = any(node.op_type == "QuantizeLinear" for node in graph)
    if phase == "step":
        drop_last_queries(model)
        make_causal(graph)
    join_attention_layers(graph)
    if cache is not None:
        store_codes(graph, cache, max_positions, phase)
    elif phase == "step":
        turn_inside_attention(graph, max_positions)
        pack_attention(graph)
    if phase != "prompt":
        join_gates(graph)
    if phase != "prompt" and not is_for_prompts:
        join_sums_and_norms(graph)
    join_silu(graph)
    drop_unused(model)
    graph.sort()
