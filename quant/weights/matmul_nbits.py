"""Weight-only linear layers as `com.microsoft::MatMulNBits`: the fast form where few rows meet a weight.

    MatMul(x, W)  ->  MatMulNBits(x, packed codes [N, blocks, block_size * bits / 8], scales [N, blocks])

Codes have 2, 4 or 8 bits and come from any rounding. Zero points that blocks store go in as packed uint8, which costs
no time. What a rounding adds to a whole block goes through the sum of the block's inputs,

    x ── MatMul(indicator [K, blocks]) ── MatMul(offsets [blocks, N]) ── Add

where the sums are found once for all layers that read x. The indicator takes x of any rank and blocks that K does not
fill; ReduceSum would need reshapes that know both. A second plane is a second MatMulNBits and twice the time.

With accuracy_level 4, ONNX Runtime rounds the activations of each block to int8 as well and multiplies integers; that
costs about half a percent of relative error and is what makes decoding fast. Without it the CPU has no kernel for 2 or
8 bits and falls to one 100 times slower, which `refuse_cliffs` refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import Float32, Linear, find_linears
from graphs.store import CONTRIB, add_initializer, add_new_initializer, make_node, replace_node
from quant.calibration.statistics import InputStatistics
from quant.rounding.block_codes import BlockCodes, UInt8, pack
from quant.rounding.table import load_rounding
from quant.weights.doubled_inputs import DoubledInputs, double_rows, lengthened
from quant.weights.float_inputs import FloatInputs, split_rows
from quant.weights.layer_codes import LayerCodes, refuse_rounding, round_layer
from quant.weights.weight_pass import WeightPass

INT8_ACTIVATIONS = 4
"""accuracy_level at which the kernel multiplies int8 by int8."""

_SMALLEST_BLOCK = 16  # the operator's own limit
_FAST_2BIT_BLOCKS = (32, 64, 128)


def refuse_cliffs(name: str, form: Form, accuracy_level: int) -> int:
    """Return the block size of a form that the operator has and runs fast.

    Args:
        name: The layer's, for the message.
        form: Bits and block.
        accuracy_level: 4 rounds activations to int8; 0 keeps them float32.

    Raises:
        QuantizationError: The operator has no such form, or it is 100 times slower on a CPU than it looks.
    """
    bits, block_size = form.bits, form.block_size
    if bits not in (2, 4, 8):
        raise QuantizationError(f"{name}: MatMulNBits stores 2, 4 or 8 bits, not {bits}")
    if block_size is None or block_size < _SMALLEST_BLOCK or block_size & (block_size - 1):
        raise QuantizationError(f"{name}: block size {block_size}; it must be a power of two from {_SMALLEST_BLOCK}")
    if bits in (2, 8) and accuracy_level < INT8_ACTIVATIONS:
        raise QuantizationError(
            f"{name}: {bits}-bit weights with accuracy_level {accuracy_level} run about 100 times slower on a CPU "
            f"than with {INT8_ACTIVATIONS}: ONNX Runtime unpacks them to float32 at every call"
        )
    if bits == 2 and block_size not in _FAST_2BIT_BLOCKS:
        raise QuantizationError(
            f"{name}: 2-bit weights in blocks of {block_size} have no fast CPU kernel; "
            f"take one of {', '.join(map(str, _FAST_2BIT_BLOCKS))}"
        )
    return block_size


def reference(
    x: Float32,
    rows: Float32,
    form: Form,
    accuracy_level: int = INT8_ACTIVATIONS,
    inputs: InputStatistics | None = None,
) -> Float32:
    """Return what the nodes compute for x @ rows^T.

    Args:
        x: [..., K] float32.
        rows: [N, K] float32.
        form: Bits, block and rounding.
        accuracy_level: As in the operator.
        inputs: For roundings that are calibrated.

    Returns:
        [..., N] float32. At accuracy_level 4 the activations of each block are rounded to int8 by their own largest
        magnitude, as MLAS does; those that meet offsets are not.
    """
    block_size = refuse_cliffs("reference", form, accuracy_level)
    if form.doubled_inputs:
        longer = double_rows(rows, form, inputs)
        return reference(
            lengthened(x, longer.channels),
            longer.rows,
            replace(form, doubled_inputs=0),
            accuracy_level,
            longer.inputs,
        )
    split = split_rows(rows, form, inputs)
    codes = load_rounding(form.rounding)(split.rows, form.bits, block_size, split.inputs)
    quiet = np.array(x, np.float32)
    quiet[..., split.channels] = 0
    seen = round_activations(quiet, block_size) if accuracy_level >= INT8_ACTIVATIONS else quiet
    product = np.asarray(sum(_plane_product(quiet, seen, plane) for plane in codes.planes), np.float32)
    if len(split.channels):
        float_rows = split.finished(codes.weights(rows.shape[1])).astype(np.float16).astype(np.float32)
        product = product + x[..., split.channels] @ float_rows.T
    return np.asarray(product, np.float32)


def block_indicator(num_inputs: int, block_size: int) -> Float32:
    """Return [K, blocks] float32: 1 where an input belongs to a block."""
    blocks = np.arange(num_inputs) // block_size
    return np.asarray(blocks[:, None] == np.arange(-(-num_inputs // block_size)), np.float32)


def _plane_product(x: Float32, seen: Float32, plane: BlockCodes) -> Float32:
    steps = replace(plane, offsets=None).weights(x.shape[-1])
    product = seen @ steps.T
    if plane.offsets is not None:
        product += x @ block_indicator(x.shape[-1], plane.block_size) @ plane.offsets.T
    return np.asarray(product, np.float32)


def round_activations(x: Float32, block_size: int) -> Float32:
    """Return x [..., K] with each block rounded to int8 steps of its own largest magnitude, as MLAS does."""
    missing = -x.shape[-1] % block_size
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    blocks = padded.reshape(*x.shape[:-1], -1, block_size)
    step = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    codes = np.rint(np.divide(blocks, step, out=np.zeros_like(blocks), where=step != 0))
    return np.asarray((codes * step).reshape(padded.shape)[..., : x.shape[-1]], np.float32)


class MatMulNBits(WeightPass):
    """Replaces the named linear layers by MatMulNBits.

    Args:
        layers: Weight name to bits, block size and rounding.
        inputs: For roundings that are calibrated.
        accuracy_level: 4 rounds activations to int8; 0 keeps them float32.
    """

    def __init__(
        self,
        layers: Mapping[str, Form],
        inputs: Mapping[str, InputStatistics] | None = None,
        *,
        accuracy_level: int = INT8_ACTIVATIONS,
    ) -> None:
        self._accuracy_level = accuracy_level
        super().__init__(layers, inputs)

    def check(self, name: str, form: Form) -> None:
        """Refuse forms that do not exist, known cliffs, and roundings that lack what they read."""
        refuse_cliffs(name, form, self._accuracy_level)
        refuse_rounding(name, form, self._inputs)

    def layers_of(self, graph: ir.Graph) -> set[str]:
        """Return the names of the graph's linear layers."""
        return {linear.name for linear in find_linears(graph)}

    def rewrite(self, graph: ir.Graph) -> None:
        """Replace the layers; a weight that two of them read is rounded and packed once."""
        stored: dict[str, _StoredLayer] = {}
        beside = _Beside(_BlockSums(), FloatInputs(), DoubledInputs())
        for linear in find_linears(graph):
            form = self._forms.get(linear.name)
            if form is not None:
                if linear.name not in stored:
                    block_size = refuse_cliffs(linear.name, form, self._accuracy_level)
                    layer = self.codes(linear, form, block_size)
                    num_inputs = linear.num_inputs + 2 * len(layer.doubled)
                    planes = [_stored(graph, linear.name, num_inputs, *each) for each in enumerate(layer.codes.planes)]
                    stored[linear.name] = _StoredLayer(planes, layer)
                self._replace(graph, linear, stored[linear.name], beside)
                graph.opset_imports[CONTRIB] = 1

    def codes(self, linear: Linear, form: Form, block_size: int) -> LayerCodes:
        """Return a layer's weights in codes: rounded, unless who has them says otherwise."""
        return round_layer(linear, form, block_size, self._inputs)

    def _replace(self, graph: ir.Graph, linear: Linear, layer: _StoredLayer, beside: _Beside) -> None:
        """Put the sum of the planes' products, of offsets and of float inputs in the place of a layer's node."""
        name, x = str(linear.node.outputs[0].name), linear.input
        if len(layer.codes.doubled):
            x = beside.doubled.longer(graph, linear, layer.codes.doubled)
        apart = beside.floats.apart(graph, linear, layer.codes.channels) if len(layer.codes.channels) else None
        if apart is not None:
            x = apart.quiet
        nodes = [self._product(linear, x, plane, f"{name}.product{plane.suffix}") for plane in layer.planes]
        terms = [node.outputs[0] for node in nodes]
        if apart is not None:
            nodes += beside.floats.product(graph, linear, apart, layer.codes.float_rows)
            terms.append(nodes[-1].outputs[0])
        for plane in layer.planes:
            if plane.offsets is not None:
                block_sums = beside.sums.of(graph, linear, plane.block_size)
                nodes.append(make_node("MatMul", [block_sums, plane.offsets], f"{name}.offset{plane.suffix}"))
                terms.append(nodes[-1].outputs[0])
        if linear.bias is not None:
            terms.append(linear.bias)
        total = terms[0]
        for at, term in enumerate(terms[1:]):
            nodes.append(make_node("Add", [total, term], f"{name}.sum{at}"))
            total = nodes[-1].outputs[0]
        replace_node(graph, linear.node, nodes)

    def _product(self, linear: Linear, x: ir.Value, plane: _StoredPlane, name: str) -> ir.Node:
        attributes = {
            "K": plane.num_inputs,
            "N": linear.num_outputs,
            "bits": plane.bits,
            "block_size": plane.block_size,
            "accuracy_level": self._accuracy_level,
        }
        return make_node("MatMulNBits", [x, *plane.weight], name, attributes, CONTRIB)


@dataclass(frozen=True)
class _StoredPlane:
    """One matrix in the graph, filled by `_stored`.

    Attributes:
        bits: Per code.
        block_size: Weights per scale.
        weight: Packed codes [N, blocks, bytes], scales [N, blocks], and packed zero points where blocks have them.
        offsets: [blocks, N]; None: there are none.
        suffix: Tells the planes of one layer apart in names.
        num_inputs: K of the operator.
    """

    bits: int
    block_size: int
    weight: list[ir.Value]
    offsets: ir.Value | None
    suffix: str
    num_inputs: int


@dataclass(frozen=True)
class _Beside:
    """What layers that read one input share of a graph's nodes.

    Attributes:
        sums: Of the input's blocks.
        floats: The input taken apart.
        doubled: The input with its loudest channels twice behind it.
    """

    sums: _BlockSums
    floats: FloatInputs
    doubled: DoubledInputs


@dataclass(frozen=True)
class _StoredLayer:
    """A layer in the graph.

    Attributes:
        planes: Its matrices.
        codes: What they were made of, and the inputs in float.
    """

    planes: Sequence[_StoredPlane]
    codes: LayerCodes


def _stored(graph: ir.Graph, layer: str, num_inputs: int, at: int, plane: BlockCodes) -> _StoredPlane:
    """Keep one plane of a layer in the graph."""
    suffix = f".plane{at}" if at else ""
    name, shape = f"{layer}{suffix}", plane.scales.shape
    weight = [
        add_new_initializer(graph, f"{name}.int{plane.bits}", pack(plane.codes, plane.bits).reshape(*shape, -1)),
        stored_scales(graph, name, plane),
    ]
    if plane.zero_points is not None:
        weight.append(add_new_initializer(graph, f"{name}.zeros", packed_zeros(name, plane)))
    offsets = None if plane.offsets is None else add_new_initializer(graph, f"{name}.offset", plane.offsets.T)
    return _StoredPlane(plane.bits, plane.block_size, weight, offsets, suffix, num_inputs)


def stored_scales(graph: ir.Graph, name: str, plane: BlockCodes) -> ir.Value:
    """Return the scales [N, blocks] float32 of a plane, kept in the graph as codes of its rows' steps where it has any.

    A runtime multiplies them when it loads the graph, and never again.
    """
    if plane.steps is None:
        return add_new_initializer(graph, f"{name}.scale", plane.scales)
    codes = add_new_initializer(graph, f"{name}.scale_codes", plane.scale_codes)
    steps = add_new_initializer(graph, f"{name}.scale_steps", plane.steps)
    numbers = make_node("Cast", [codes], f"{codes.name}.numbers", {"to": int(ir.DataType.FLOAT)})
    scales = make_node("Mul", [numbers.outputs[0], steps], f"{codes.name}.scale")
    graph.insert_before(graph[0], [numbers, scales])
    return scales.outputs[0]


def packed_zeros(name: str, plane: BlockCodes) -> UInt8:
    """Return the zero points as the operator reads them, [N, ceil(blocks * bits / 8)]."""
    zeros = np.asarray(plane.zero_points)
    if zeros.dtype != np.uint8:
        raise QuantizationError(
            f"{name}: zero points of type {zeros.dtype}; ONNX Runtime has fast CPU kernels for packed uint8 ones only, "
            f"others run about 100 times slower"
        )
    missing = -zeros.shape[1] % (8 // plane.bits)
    return pack(np.pad(zeros, ((0, 0), (0, missing))), plane.bits)


class _BlockSums:
    """The sums of an input's blocks, found once for all layers that read it."""

    def __init__(self) -> None:
        self._found: dict[tuple[ir.Value, int], ir.Value] = {}

    def of(self, graph: ir.Graph, linear: Linear, block_size: int) -> ir.Value:
        """Return [..., blocks]: the product of a layer's input with the blocks' indicator, whatever its rank and K."""
        key = (linear.input, block_size)
        if key not in self._found:
            indicator = block_indicator(linear.num_inputs, block_size)
            matrix = add_initializer(graph, f"blocks_of_{block_size}_in_{linear.num_inputs}", indicator)
            node = make_node("MatMul", [linear.input, matrix], f"{linear.node.outputs[0].name}.block_sums")
            graph.insert_before(linear.node, node)
            self._found[key] = node.outputs[0]
        return self._found[key]
