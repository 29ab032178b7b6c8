"""Where the nodes of an opened graph run: on the provider that was asked for, or nowhere.

ONNX Runtime gives a node that a provider has no kernel for to the CPU and says nothing; what the node reads and writes
then crosses the bus in every run. Arithmetic on shapes it keeps on the CPU by choice, and nothing is lost by that.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from bundle.errors import MachineError
from runtime.settings import Provider

_SHAPE_ARITHMETIC = frozenset(
    re.findall(
        r"\w+",
        "Abs Add And Cast Ceil Concat Constant ConstantOfShape Div Equal Expand Floor Gather Greater "
        "GreaterOrEqual Identity Less LessOrEqual Max Min Mod Mul Neg Not Or Range ReduceMax ReduceMin ReduceProd "
        "ReduceSum Reshape Shape Size Slice Split Sqrt Squeeze Sub Tile Transpose Unsqueeze Where ",
    )
)
"""Operators with a CUDA kernel for every type of tensor that our graphs compute with: where ONNX Runtime puts one on
the CPU, it works on a shape."""
_REASONS = {
    "GroupQueryAttention": "on CUDA it takes float16 and bfloat16 only",
    "DynamicQuantizeLinear": "CUDA has no kernel for activations that are quantized at run time",
    "DynamicQuantizeMatMul": "CUDA has no kernel for activations that are quantized at run time",
    "MatMulIntegerToFloat": "CUDA has no kernel for activations that are quantized at run time",
}
_COPIES = frozenset({"MemcpyFromHost", "MemcpyToHost"})
"""What ONNX Runtime itself puts between the host's inputs and a device."""
_MOST_NAMED = 4
"""Operators in a message."""
_REFUSES_CAPTURE = ("cannot use the graph capture feature", "cannot use the CUDA Graph feature")


def check_placement(name: str, session: Any, provider: Provider, engine: str | None = None) -> None:
    """Check that no node of a session fell to the CPU, shape arithmetic aside.

    Args:
        name: Of the graph, for the message.
        session: ONNX Runtime's, opened with `session.record_ep_graph_assignment_info`.
        provider: That was asked for.
        engine: Of TensorRT's, which makes one engine of a graph: what it does not take, arithmetic on shapes as well,
            leaves it in pieces. None: CUDA's own.

    Raises:
        MachineError: Nodes did; the message names them and says why.
    """
    if provider == "cpu":
        return
    if engine is not None:
        _check_engine(name, session, engine)
        return
    if all(_is_cpu_name(each) for each in session.get_providers()):
        raise MachineError(
            f"{name}: ONNX Runtime was built with the provider for {provider} but could not load it, and fell back to "
            "the CPU: no device, a driver that is too old, or libraries that are not found (cuBLAS, cuDNN, cudart of "
            "the CUDA version that it was built for, on LD_LIBRARY_PATH). See: pocketvlm doctor"
        )
    strays = [
        node for part in session.get_provider_graph_assignment_info() if _is_cpu(part) for node in part.get_nodes()
    ]
    strays = [node for node in strays if node.domain or node.op_type not in _SHAPE_ARITHMETIC]
    if not strays:
        return
    told = "; ".join(_told(op_type, number, strays) for op_type, number in _counted(strays)[:_MOST_NAMED])
    raise MachineError(
        f"{name}: {len(strays)} nodes have no kernel on {provider} for their types and would run on the CPU, with "
        f"their inputs and outputs crossing the bus in every run: {told}. Make a variant for this device with: "
        f"pocketvlm quantize --target {provider}; or choose provider cpu."
    )


def _check_engine(name: str, session: Any, engine: str) -> None:
    """Check that all of a graph is in one of TensorRT's engines.

    Raises:
        MachineError: It is not.
    """
    if engine not in session.get_providers():
        raise MachineError(
            f"{name}: ONNX Runtime has {engine} but could not load it: no device, or libraries that are not found "
            "(libnvinfer and libnvonnxparser of the version that it was built for, on LD_LIBRARY_PATH). See: pocketvlm "
            "doctor"
        )
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name != engine]
    strays = [node for part in parts for node in part.get_nodes() if node.op_type not in _COPIES]
    if strays:
        told = "; ".join(_told(op_type, number, strays) for op_type, number in _counted(strays)[:_MOST_NAMED])
        raise MachineError(
            f"{name}: {engine} does not take {len(strays)} nodes, which would run elsewhere and leave the graph in "
            f"pieces: {told}. See what its TensorRT lacks with: pocketvlm doctor BUNDLE --tensorrt VERSION; take "
            "engines of pocketvlm compile, which writes graphs for older versions, or device_runtime cuda."
        )


def refuses_capture(error: Exception) -> bool:
    """Return whether a session could not be opened only because its runs cannot be captured."""
    return any(sign in str(error) for sign in _REFUSES_CAPTURE)


def _is_cpu(part: Any) -> bool:
    return _is_cpu_name(str(part.ep_name))


def _is_cpu_name(provider: str) -> bool:
    return provider.startswith("CPU")


def _counted(strays: list[Any]) -> list[tuple[str, int]]:
    return Counter(str(node.op_type) for node in strays).most_common()


def _told(op_type: str, number: int, strays: list[Any]) -> str:
    first = next(node for node in strays if node.op_type == op_type)
    reason = f" ({_REASONS[op_type]})" if op_type in _REASONS else ""
    return f"{number} x {op_type}, the first of them {first.name or 'without a name'}{reason}"
