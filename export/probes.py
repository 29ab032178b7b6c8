"""One-node models that tell whether a machine's ONNX Runtime has an operator.

A server cannot build graphs (it never imports onnx), so the models are written here and shipped, a few hundred bytes
each, in `runtime/probes/`. Rewrite them with: python -m export.probes
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from graphs.experts import moe_attributes
from graphs.store import CONTRIB

FOLDER = Path(__file__).resolve().parent.parent / "runtime" / "probes"
_IR_VERSION = 10


def _model(nodes: list[onnx.NodeProto], initializers: dict[str, NDArray[Any]], opset: int = 21) -> onnx.ModelProto:
    """Return a model with output "y" whose inputs are all initializers, so that a probe runs with no feeds."""
    tensors = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "probe", [], [output], tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=opsets)


def _matmul_nbits(bits: int) -> onnx.ModelProto:
    columns, rows, block = 64, 8, 32
    weights = np.full((rows, columns // block, block * bits // 8), 0x55, np.uint8)
    node = helper.make_node(
        "MatMulNBits",
        ["a", "b", "s"],
        ["y"],
        domain=CONTRIB,
        K=columns,
        N=rows,
        bits=bits,
        block_size=block,
        accuracy_level=4,
    )
    scales = np.ones((rows, columns // block), np.float32)
    return _model([node], {"a": np.ones((1, columns), np.float32), "b": weights, "s": scales})


def _group_query_attention(cache_dtype: type[np.generic], code_bits: int = 0) -> onnx.ModelProto:
    """Return an attention over a cache of floats, or of codes of so many bits with a scale per channel."""
    heads, kv_heads, size, capacity = 4, 2, 16, 8
    names = ["q", "k", "v", "pk", "pv", "lengths", "total"]
    cache = np.zeros((1, kv_heads, capacity, size // 2 if code_bits == 4 else size), cache_dtype)
    values: dict[str, NDArray[Any]] = {
        "q": np.ones((1, 1, heads * size), np.float32),
        "k": np.ones((1, 1, kv_heads * size), np.float32),
        "v": np.ones((1, 1, kv_heads * size), np.float32),
        "pk": cache,
        "pv": cache,
        "lengths": np.array([2], np.int32),
        "total": np.array(3, np.int32),
    }
    attributes: dict[str, object] = {}
    if code_bits:
        names += [""] * 5 + ["ks", "vs"]
        values |= dict.fromkeys(("ks", "vs"), np.ones(kv_heads * size, np.float32))
        per_channel = dict.fromkeys(("k_quant_type", "v_quant_type"), "PER_CHANNEL")
        attributes = {**per_channel, "kv_cache_bit_width": code_bits}
    node = helper.make_node(
        "GroupQueryAttention",
        names,
        ["y", "nk", "nv"],
        domain=CONTRIB,
        num_heads=heads,
        kv_num_heads=kv_heads,
        **attributes,
    )
    return _model([node], values)


def _gather_block_quantized(bits: int) -> onnx.ModelProto:
    node = helper.make_node(
        "GatherBlockQuantized",
        ["codes", "ids", "scales"],
        ["y"],
        domain=CONTRIB,
        bits=bits,
        block_size=32,
        gather_axis=0,
        quantize_axis=1,
    )
    values: dict[str, NDArray[Any]] = {
        "codes": np.full((4, 64 * bits // 8), 0x88, np.uint8),
        "ids": np.array([1], np.int64),
        "scales": np.ones((4, 2), np.float32),
    }
    return _model([node], values)


def _matmul_bnb4() -> onnx.ModelProto:
    inputs, outputs, block = 64, 8, 64
    node = helper.make_node(
        "MatMulBnb4", ["a", "b", "absmax"], ["y"], domain=CONTRIB, K=inputs, N=outputs, block_size=block, quant_type=1
    )
    values: dict[str, NDArray[Any]] = {
        "a": np.ones((1, inputs), np.float32),
        "b": np.full(inputs * outputs // 2, 0x77, np.uint8),
        "absmax": np.ones(inputs * outputs // block, np.float32),
    }
    return _model([node], values)


_HIDDEN, _INNER, _EXPERTS = 32, 32, 2
_ONE_EXPERT = moe_attributes(1, is_normalised=False)


def _mixture_of_experts() -> onnx.ModelProto:
    values: dict[str, NDArray[Any]] = {
        "x": np.ones((1, _HIDDEN), np.float32),
        "router": np.ones((1, _EXPERTS), np.float32),
        "w1": np.ones((_EXPERTS, 2 * _INNER, _HIDDEN), np.float32),
        "w2": np.ones((_EXPERTS, _HIDDEN, _INNER), np.float32),
    }
    return _model(
        [helper.make_node("MoE", ["x", "router", "w1", "", "w2"], ["y"], domain=CONTRIB, **_ONE_EXPERT)], values
    )


def _quantized_experts(bits: int) -> onnx.ModelProto:
    """Return a QMoE that is handed the weights of experts as `router_weights`, which is a recent input."""
    block = _HIDDEN
    values: dict[str, NDArray[Any]] = {
        "x": np.ones((1, _HIDDEN), np.float32),
        "router": np.ones((1, _EXPERTS), np.float32),
        "w1": np.full((_EXPERTS, 2 * _INNER, _HIDDEN * bits // 8), 0xAA, np.uint8),
        "s1": np.ones((_EXPERTS, 2 * _INNER, _HIDDEN // block), np.float32),
        "w2": np.full((_EXPERTS, _HIDDEN, _INNER * bits // 8), 0xAA, np.uint8),
        "s2": np.ones((_EXPERTS, _HIDDEN, _INNER // block), np.float32),
        "shares": np.full((1, _EXPERTS), 0.5, np.float32),
    }
    node = helper.make_node(
        "QMoE",
        ["x", "router", "w1", "s1", "", "w2", "s2", *[""] * 7, "shares"],
        ["y"],
        domain=CONTRIB,
        expert_weight_bits=bits,
        block_size=block,
        **_ONE_EXPERT,
    )
    return _model([node], values)


def _static_cache_attention() -> onnx.ModelProto:
    heads, kv_heads, size, capacity = 4, 2, 16, 8
    values: dict[str, NDArray[Any]] = {
        "q": np.ones((1, heads, 1, size), np.float32),
        "k": np.ones((1, kv_heads, 1, size), np.float32),
        "cache": np.zeros((1, kv_heads, capacity, size), np.float32),
        "at": np.array([2], np.int64),
        "valid": np.array([3], np.int64),
    }
    nodes = [
        helper.make_node("TensorScatter", ["cache", "k", "at"], ["nk"], axis=2, mode="linear"),
        helper.make_node("Attention", ["q", "nk", "nk", "", "", "", "valid"], ["y"], is_causal=1),
    ]
    return _model(nodes, values, opset=24)


PROBES: dict[str, Callable[[], onnx.ModelProto]] = {
    "MatMulNBits-2bit": lambda: _matmul_nbits(2),
    "MatMulNBits-4bit": lambda: _matmul_nbits(4),
    "MatMulNBits-8bit": lambda: _matmul_nbits(8),
    "GroupQueryAttention": lambda: _group_query_attention(np.float32),
    "GroupQueryAttention-int8-cache": lambda: _group_query_attention(np.int8, 8),
    "GroupQueryAttention-int4-cache": lambda: _group_query_attention(np.uint8, 4),
    "GatherBlockQuantized-4bit": lambda: _gather_block_quantized(4),
    "GatherBlockQuantized-8bit": lambda: _gather_block_quantized(8),
    "MatMulBnb4": _matmul_bnb4,
    "MoE": _mixture_of_experts,
    "QMoE-2bit": lambda: _quantized_experts(2),
    "QMoE-4bit": lambda: _quantized_experts(4),
    "QMoE-8bit": lambda: _quantized_experts(8),
    "Attention-24-static-cache": _static_cache_attention,
}
"""File stem -> builder. The stem is what `pocketvlm doctor` prints."""


def main() -> None:
    """Write every probe into `runtime/probes/`."""
    FOLDER.mkdir(exist_ok=True)
    for name, build in PROBES.items():
        (FOLDER / f"{name}.onnx").write_bytes(build().SerializeToString())


if __name__ == "__main__":
    main()
