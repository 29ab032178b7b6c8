"""Which operators of our graphs have a CUDA kernel, and for which floats (ONNX Runtime 1.31, docs/OperatorKernels.md).

What lacks one runs on the CPU in silence, and its tensors cross the bus at every run: GroupQueryAttention of float32
took the whole cache with it. Nodes that read no float are shape arithmetic and ids, which ONNX Runtime places itself.
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
    *("Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "Conv", "Relu", "Sigmoid", "Tanh", "Erf", "Gelu", "Softmax"),
    *(
        "Cos",
        "Sin",
        "Log",
        "Floor",
        "RotaryEmbedding",
        "RMSNormalization",
        "LayerNormalization",
        "SimplifiedLayerNormalization",
    ),
    *(
        "Gather",
        "GatherND",
        "Reshape",
        "Transpose",
        "Split",
        "Concat",
        "Slice",
        "Expand",
        "Squeeze",
        "Unsqueeze",
        "Where",
    ),
    *(
        "Cast",
        "CastLike",
        "Shape",
        "ArgMax",
        "TopK",
        "ReduceMax",
        "ReduceSum",
        "ReduceMean",
        "ReduceLogSumExp",
        "Equal",
        "IsNaN",
    ),
)
"""CastLike is a function of ONNX, which ONNX Runtime writes as a Cast when it opens a graph."""
_OWN: Mapping[str, frozenset[ir.DataType]] = {
    "GroupQueryAttention": _ONLY_HALF,
    "MultiHeadAttention": _BOTH,
    "SkipSimplifiedLayerNormalization": _BOTH,
    "QuickGelu": _BOTH,
    "MatMulNBits": _BOTH,
    "MatMulBnb4": _BOTH,
    "GatherBlockQuantized": _BOTH,
    "MoE": _BOTH,
}
_KERNELS: Mapping[tuple[str, str], frozenset[ir.DataType]] = {
    **{("", op_type): _BOTH for op_type in _STANDARD},
    **{(CONTRIB, op_type): types for op_type, types in _OWN.items()},
}


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
    types = {value: value.dtype for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        floats = {types.get(value) for value in node.inputs if value is not None} & _BOTH
        if floats and not floats <= _KERNELS.get((node.domain, node.op_type), frozenset()):
            names = " and ".join(sorted(each.name.lower() for each in floats if each is not None))
            yield f"{node.op_type} of {names} ({node.name})"
        types |= {value: value.dtype or _given(node, floats) for value in node.outputs}


def _given(node: ir.Node, floats: set[ir.DataType | None]) -> ir.DataType | None:
    """Return what a node gives whose outputs have no type: the float that it reads."""
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type == "Shape":
        return ir.DataType.INT64
    return next(iter(floats), None)
