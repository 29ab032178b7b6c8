"""Which operators of our graphs have a CUDA kernel in ONNX Runtime 1.31, and for which floats.

What lacks one runs on the CPU in silence, and its tensors cross the bus at every run: GroupQueryAttention of float32
took the whole cache with it. Nodes that read no float are shape arithmetic and ids, which ONNX Runtime places itself.

Sources: ONNX Runtime's docs/OperatorKernels.md, section CUDA, and the registrations that it is made of. **A kernel that
is registered from an opset on, without an end, is found only while the operator's definition is of that very opset**
(KernelRegistry): Cos "7+" is none for Cos of opset 22. The table is of the contrib dialect, whose graphs are of opset
23. Builds older than those of summer 2026 lack kernels of these definitions: Cos, Sin, Equal, Flatten, Identity, Pad,
ReduceMax, ReduceMin, Softplus, and the pools but AveragePool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from bundle.errors import QuantizationError
from graphs.half import HALF, SINGLE
from graphs.store import CONTRIB

_BOTH = frozenset({HALF, SINGLE})
_ONLY_HALF = frozenset({HALF})
_STANDARD = (
    # one number after another
    *("Abs", "Add", "Clip", "Cos", "Div", "Erf", "Exp", "Floor", "Gelu", "Log", "Max", "Min", "Mod", "Mul", "Neg"),
    *("Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sin", "Softplus", "Sqrt", "Sub", "Sum", "Tanh"),
    *("Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "Where"),
    # products, sums and norms
    *("AveragePool", "Conv", "Einsum", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "MatMul", "MaxPool", "Resize"),
    *("ArgMax", "CumSum", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "TopK"),
    *("BatchNormalization", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "Softmax"),
    *("RotaryEmbedding",),
    # the same numbers in other places, or of another type
    *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "ScatterND"),
    *("Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    *("Cast", "CastLike"),
)
"""Of ONNX, for both floats. CastLike is a function, which becomes a Cast when ONNX
Runtime opens a graph. Einsum, Pow, Reciprocal, Round and Tile are of adopted towers alone."""
_OWN: Mapping[str, frozenset[ir.DataType]] = {
    "GatherBlockQuantized": _BOTH,
    "GroupQueryAttention": _ONLY_HALF,
    "LinearAttention": _BOTH,
    "MatMulBnb4": _BOTH,
    "MatMulNBits": _BOTH,
    "MoE": _BOTH,
    "MultiHeadAttention": _BOTH,
    "QuickGelu": _BOTH,
    "SkipSimplifiedLayerNormalization": _BOTH,
}
"""ONNX Runtime's own. QMoE has one for weights in an order of CUDA's alone, which is not written."""
_SPELLED = frozenset({("", "LpNormalization")})
"""Without a kernel, and written in other operators by the lowering."""
_WAITING = "NonZero"
"""Its kernel copies a count to the host and waits for it; runs on a device are captured, and those cannot wait."""
_KERNELS: Mapping[tuple[str, str], frozenset[ir.DataType]] = {
    **{("", op_type): _BOTH for op_type in _STANDARD},
    **{(CONTRIB, op_type): types for op_type, types in _OWN.items()},
}


def require_operators(graph: ir.Graph) -> None:
    """Check, before anything is computed, that no operator of a graph lacks a kernel whatever becomes of its floats.

    Args:
        graph: Not yet lowered, of float32.

    Raises:
        QuantizationError: One does, or waits for the host.
    """
    if waiting := sum(node.op_type == _WAITING and not node.domain for node in graph):
        raise QuantizationError(
            f"--target cuda: {graph.name} sorts rows by their kind or their expert, {waiting} times a run, and waits "
            f"for the host to read how many each has ({_WAITING}), which a captured run cannot. Leave --target out"
        )
    found = {(node.domain, node.op_type) for node, _ in _read_floats(graph)}
    if unknown := {op_type for _, op_type in found - _KERNELS.keys() - _SPELLED}:
        raise QuantizationError(
            f"--target cuda: {graph.name} holds operators that have no CUDA kernel: {', '.join(sorted(unknown))}. "
            "Leave --target out; if one is a new operator of the export, add it to graphs/lowering/cuda_kernels.py"
        )


def require_kernels(graph: ir.Graph) -> None:
    """Check that a graph would run on CUDA as a whole.

    Raises:
        QuantizationError: A node has no kernel there; the message names the first few.
    """
    if found := list(without_kernel(graph)):
        raise QuantizationError(
            f"{graph.name}: {len(found)} nodes have no CUDA kernel and would run on the CPU: {', '.join(found[:3])}. "
            "Take fp16, int8 or int4; if it is a new operator of the export, add it to graphs/lowering/cuda_kernels.py"
        )


def without_kernel(graph: ir.Graph) -> Iterator[str]:
    """Yield operator, floats and name of every node that has no CUDA kernel for the floats that it reads."""
    for node, floats in _read_floats(graph):
        if not floats <= _KERNELS.get((node.domain, node.op_type), frozenset()):
            names = " and ".join(sorted(each.name.lower() for each in floats))
            yield f"{node.op_type} of {names} ({node.name})"


def _read_floats(graph: ir.Graph) -> Iterator[tuple[ir.Node, frozenset[ir.DataType]]]:
    """Yield every node that reads floats, with the types of them."""
    types = {value: value.dtype for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        floats = frozenset(found for value in node.inputs if value and (found := types.get(value)) in _BOTH)
        if floats:
            yield node, floats
        types |= {value: value.dtype or _given(node, floats) for value in node.outputs}


def _given(node: ir.Node, floats: frozenset[ir.DataType]) -> ir.DataType | None:
    """Return what a node gives whose outputs have no type: the float that it reads."""
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type == "Shape":
        return ir.DataType.INT64
    return next(iter(floats), None)
