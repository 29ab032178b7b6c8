"""Linear layers in NF4 or FP4 as `com.microsoft::MatMulBnb4`: what bitsandbytes makes of a checkpoint, kept to the bit.

    MatMul(x, W)  ->  MatMulBnb4(x, packed codes [ceil(N * K / 2)], absmax [ceil(N * K / block)])

W^T is laid out flat and cut into blocks, which may run from one output's row into the next. A weight is one of 16
levels times the largest magnitude of its block; bitsandbytes (Dettmers et al., arXiv 2305.14314) chooses the codes.

It is for compatibility. On a CPU the operator unpacks the whole matrix to float32 at every call: for 2048 inputs and
8192 outputs (AMD EPYC, AVX-512, one thread, ONNX Runtime 1.31.1) one row takes 37 to 64 ms, where
float32 takes 14 to 26 and int4 MatMulNBits 0.6 to 0.7; 256 rows take 1.2 times what they take in float32.
"""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
import onnx_ir as ir

from bundle.errors import QuantizationError
from bundle.extras import install_line
from bundle.form import Form
from graphs.layers import Float32, Linear, find_linears
from graphs.store import CONTRIB, add_initializer, make_node, replace_node
from quant.rounding.block_codes import UInt8
from quant.weights.weight_pass import WeightPass

Kind = Literal["nf4", "fp4"]

KINDS: dict[str, Kind] = {"nf4": "nf4", "fp4": "fp4"}
"""By a form's rounding."""
BITS = 4
BLOCK_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
"""That bitsandbytes has on a CPU."""

_QUANT_TYPES: dict[Kind, int] = {"fp4": 0, "nf4": 1}
"""The operator's attribute."""
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_FP4_SIZES = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
_LEVELS: dict[Kind, Float32] = {
    "nf4": np.array(_NF4, np.float32),
    "fp4": np.array([*_FP4_SIZES, *(-size for size in _FP4_SIZES)], np.float32),
}
"""The weights, in blocks of magnitude 1, that the 16 codes stand for (arXiv 2305.14314, appendix E; FP4 with 3 bits
of sign and exponent and 1 of mantissa as bitsandbytes orders them)."""


def quantize_flat(rows: Float32, kind: Kind, block_size: int) -> tuple[UInt8, Float32]:
    """Return packed codes [ceil(N * K / 2)], the first of a pair in the high bits, and absmax [blocks].

    Args:
        rows: [N, K] float32, one row per output.
        kind: Which levels.
        block_size: Of `BLOCK_SIZES`.

    Raises:
        QuantizationError: bitsandbytes is not installed.
    """
    try:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that nothing here calls
        import torch
        from bitsandbytes.functional import quantize_4bit
    except ImportError as error:
        raise QuantizationError(f"{kind} is made by bitsandbytes: {install_line('quant')}") from error
    packed, state = quantize_4bit(torch.from_numpy(np.array(rows)), blocksize=block_size, quant_type=kind)
    return packed.numpy().ravel(), state.absmax.numpy().astype(np.float32)


def reference(x: Float32, rows: Float32, kind: Kind, block_size: int) -> Float32:
    """Return what the operator computes for x @ rows^T, [..., N] float32.

    Args:
        x: [..., K] float32.
        rows: [N, K] float32.
        kind: Which levels.
        block_size: Of `BLOCK_SIZES`.
    """
    packed, absmax = quantize_flat(rows, kind, block_size)
    return np.asarray(x @ weights(packed, absmax, kind, block_size, rows.shape).T, np.float32)


def weights(packed: UInt8, absmax: Float32, kind: Kind, block_size: int, shape: tuple[int, ...]) -> Float32:
    """Return the matrix, of that shape, which packed codes and absmax stand for."""
    size = int(np.prod(shape))
    codes = np.stack([packed >> 4, packed & 15], axis=1).ravel()[:size]
    levels = _LEVELS[kind][codes]
    return np.asarray(levels * np.repeat(absmax, block_size)[:size], np.float32).reshape(shape)


class Bnb4(WeightPass):
    """Replaces the named linear layers by MatMulBnb4.

    Args:
        layers: Weight name to 4 bits, a block size, and "nf4" or "fp4" as rounding.
    """

    def check(self, name: str, form: Form) -> None:
        """Refuse forms that bitsandbytes lacks."""
        if form.bits != BITS or form.block_size not in BLOCK_SIZES or form.rounding not in KINDS:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise QuantizationError(
                f"{name}: MatMulBnb4 stores nf4 or fp4 with 4 bits in blocks of {sizes}, not {form}"
            )

    def layers_of(self, graph: ir.Graph) -> set[str]:
        """Return the names of the graph's linear layers."""
        return {linear.name for linear in find_linears(graph)}

    def rewrite(self, graph: ir.Graph) -> None:
        """Replace the layers; a weight that two of them read is stored once."""
        for linear in find_linears(graph):
            form = self._forms.get(linear.name)
            if form is not None and form.block_size is not None:
                _rewrite(graph, linear, KINDS[form.rounding], form.block_size)
                graph.opset_imports[CONTRIB] = 1


def _rewrite(graph: ir.Graph, linear: Linear, kind: Kind, block_size: int) -> None:
    codes, absmax = f"{linear.name}.{kind}", f"{linear.name}.absmax"
    if codes not in graph.initializers:
        packed, sizes = quantize_flat(linear.rows(), kind, block_size)
        add_initializer(graph, codes, packed)
        add_initializer(graph, absmax, sizes)
    attributes = {
        "K": linear.num_inputs,
        "N": linear.num_outputs,
        "block_size": block_size,
        "quant_type": _QUANT_TYPES[kind],
    }
    name = str(linear.node.outputs[0].name)
    inputs = [linear.input, graph.initializers[codes], graph.initializers[absmax]]
    nodes = [make_node("MatMulBnb4", inputs, f"{name}.product", attributes, CONTRIB)]
    if linear.bias is not None:
        nodes.append(make_node("Add", [nodes[-1].outputs[0], linear.bias], f"{name}.biased"))
    replace_node(graph, linear.node, nodes)
