"""Embedding tables in 8 or 4 bits: rows are decoded when they are looked up.

`GatherBlocks`, for the contrib dialect, with one scale for each block of a row:

    Gather(table [V, D], ids)  ->  GatherBlockQuantized(codes [V, D * bits / 8] uint8, ids, scales [V, D / block])

(code - zero point) * scale is all the arithmetic: the operator equals its reference exactly. Where block divides D,
codes and scales are, byte for byte, those of the MatMulNBits that a tied output matrix becomes under the same form and
the same calibration, so that `graphs.sharing` can store them once. Columns that the head keeps in float are looked up
beside, and put in their places by a product with a 0-1 matrix [k, D].

`GatherRows`, for the portable dialect, with one scale for each row and 8 bits:

    Gather(codes [V, D] int8, ids) ── DequantizeLinear(1) ── Mul ── y
    Gather(scales [V, 1], ids) ──────────────────────────────┘
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import Float32, Table, find_tables
from graphs.store import CONTRIB, add_initializer, make_node, replace_node
from quant.calibration.statistics import InputStatistics
from quant.rounding.block_codes import pack
from quant.rounding.table import load_rounding
from quant.weights.doubled_inputs import double_rows, shortened
from quant.weights.float_inputs import split_rows
from quant.weights.layer_codes import LayerCodes, quantize_rows, refuse_rounding, round_layer
from quant.weights.matmul_nbits import packed_zeros, stored_scales
from quant.weights.weight_pass import WeightPass

WIDTHS = (4, 8)
BLOCK_SIZES = (16, 32, 64, 128)
ROUNDINGS = ("rtn", "rtn-positive", "gptq", "gptq-positive", "gptq-zeros", "gptq-coded")
"""Those whose codes need no offsets; where errors are fed, they are those of the head that the table is tied to."""


def reference(ids: NDArray[np.int64], rows: Float32, form: Form, inputs: InputStatistics | None = None) -> Float32:
    """Return rows[ids] as the nodes give it: [*ids.shape, D] float32.

    Args:
        ids: Any shape.
        rows: [V, D] float32.
        form: Of either pass.
        inputs: Of the head that the table is tied to, for roundings that are calibrated and for columns in float.
    """
    if form.block_size is None:
        codes, scales = quantize_rows(rows)
        return np.asarray(codes[ids].astype(np.float32) * scales[ids][..., None], np.float32)
    if form.doubled_inputs:
        longer = double_rows(rows, form, inputs)
        blocks = load_rounding(form.rounding)(longer.rows, form.bits, form.block_size, longer.inputs)
        return shortened(blocks.weights(longer.rows.shape[1]), longer.channels)[ids]
    split = split_rows(rows, form, inputs)
    blocks = load_rounding(form.rounding)(split.rows, form.bits, form.block_size, split.inputs)
    weights = blocks.weights(rows.shape[1])
    if len(split.channels):
        weights[:, split.channels] = split.finished(weights).astype(np.float16)
    return np.asarray(weights[ids], np.float32)


class _TablePass(WeightPass):
    """Replaces embedding look-ups."""

    def layers_of(self, graph: ir.Graph) -> set[str]:
        """Return the names of the graph's embedding tables."""
        return {table.name for table in find_tables(graph)}

    def rewrite(self, graph: ir.Graph) -> None:
        """Replace the look-ups; a table that two of them read is stored once."""
        for table in find_tables(graph):
            if table.name in self._forms:
                self.replace(graph, table, self._forms[table.name])

    @abstractmethod
    def replace(self, graph: ir.Graph, table: Table, form: Form) -> None:
        """Replace one look-up."""


class GatherBlocks(_TablePass):
    """Replaces the named embedding look-ups by GatherBlockQuantized.

    Args:
        layers: Weight name to 4 or 8 bits and a block size.
        inputs: Of the head that a table is tied to, by the table's name, where it is rounded as the head is.
    """

    def __init__(self, layers: Mapping[str, Form], inputs: Mapping[str, InputStatistics] | None = None) -> None:
        self._scales: dict[str, ir.Value] = {}
        super().__init__(layers, inputs)

    def check(self, name: str, form: Form) -> None:
        """Refuse widths, block sizes and roundings that the operator lacks."""
        if form.bits not in WIDTHS or form.block_size not in BLOCK_SIZES or form.rounding not in ROUNDINGS:
            raise QuantizationError(
                f"{name}: GatherBlockQuantized stores {' or '.join(map(str, WIDTHS))} bits in blocks of "
                f"{', '.join(map(str, BLOCK_SIZES))}, rounded by {' or '.join(ROUNDINGS)}, not {form}"
            )
        refuse_rounding(name, form, self._inputs)

    def replace(self, graph: ir.Graph, table: Table, form: Form) -> None:
        """Put GatherBlockQuantized in the place of a look-up."""
        block_size = form.block_size or 0
        name = f"{table.name}.int{form.bits}"
        if name not in graph.initializers:
            self._store(graph, table, form, name)
        inputs = [graph.initializers[name], table.ids, self._scales[table.name]]
        if (zeros := f"{table.name}.zeros") in graph.initializers:
            inputs.append(graph.initializers[zeros])
        attributes = {"bits": form.bits, "block_size": block_size, "gather_axis": 0, "quantize_axis": 1}
        out = str(table.node.outputs[0].name)
        nodes = [make_node("GatherBlockQuantized", inputs, f"{out}.rows", attributes, CONTRIB)]
        if (places := f"{table.name}.doubled_places") in graph.initializers:
            nodes += _shorter(graph, table, nodes[0].outputs[0], graph.initializers[places])
        if (places := f"{table.name}.places") in graph.initializers:
            beside = _float_columns(graph, table, graph.initializers[places])
            nodes += [*beside, make_node("Add", [nodes[0].outputs[0], beside[-1].outputs[0]], f"{out}.whole")]
        replace_node(graph, table.node, nodes)
        graph.opset_imports[CONTRIB] = 1

    def codes(self, table: Table, form: Form) -> LayerCodes:
        """Return a table in codes: rounded, unless who has them says otherwise."""
        return round_layer(table, form, form.block_size or 0, self._inputs)

    def _store(self, graph: ir.Graph, table: Table, form: Form, name: str) -> None:
        if table.width % (8 // form.bits):
            raise QuantizationError(
                f"{table.name}: rows of {table.width} do not fill whole bytes with {form.bits}-bit codes"
            )
        layer = self.codes(table, form)
        blocks = layer.codes
        width = table.width + 2 * len(layer.doubled)
        add_initializer(graph, name, pack(blocks.codes[:, :width], form.bits))
        self._scales[table.name] = stored_scales(graph, table.name, blocks)
        if blocks.zero_points is not None:
            add_initializer(graph, f"{table.name}.zeros", packed_zeros(table.name, blocks))
        if len(layer.doubled):
            places = np.zeros((2 * len(layer.doubled), table.width), np.float32)
            places[np.arange(len(places)), np.tile(layer.doubled, 2)] = 1
            add_initializer(graph, f"{table.name}.doubled_places", places)
        if len(layer.channels):
            places = np.zeros((len(layer.channels), table.width), np.float32)
            places[np.arange(len(layer.channels)), layer.channels] = 1
            add_initializer(graph, f"{table.name}.places", places)
            add_initializer(graph, f"{table.name}.float", layer.float_rows.astype(np.float16))


def _shorter(graph: ir.Graph, table: Table, rows: ir.Value, places: ir.Value) -> list[ir.Node]:
    """Return the nodes that make rows [..., K + 2k] those of the table [..., K]: what is doubled goes to its places."""
    out, width = str(table.node.outputs[0].name), table.width
    numbers = {
        name: add_initializer(graph, f"{table.name}.{name}", np.array([at], np.int64))
        for name, at in (("start", 0), ("width", width), ("end", width + 2 * width), ("axis", -1))
    }
    first = make_node("Slice", [rows, numbers["start"], numbers["width"], numbers["axis"]], f"{out}.first")
    behind = make_node("Slice", [rows, numbers["width"], numbers["end"], numbers["axis"]], f"{out}.behind")
    placed = make_node("MatMul", [behind.outputs[0], places], f"{out}.placed")
    return [first, behind, placed, make_node("Add", [first.outputs[0], placed.outputs[0]], f"{out}.whole")]


def _float_columns(graph: ir.Graph, table: Table, places: ir.Value) -> list[ir.Node]:
    """Return the nodes that give the columns in float of the rows looked up, at their places [..., D]."""
    out = str(table.node.outputs[0].name)
    stored = graph.initializers[f"{table.name}.float"]
    half = make_node("Gather", [stored, table.ids], f"{out}.half", {"axis": 0})
    whole = make_node("Cast", [half.outputs[0]], f"{out}.float", {"to": int(ir.DataType.FLOAT)})
    return [half, whole, make_node("MatMul", [whole.outputs[0], places], f"{out}.placed")]


class GatherRows(_TablePass):
    """Replaces the named embedding look-ups by those of int8 rows, in standard operators.

    Args:
        layers: Weight name to `Form(8)`, the only form there is.
    """

    def check(self, name: str, form: Form) -> None:
        """Refuse anything but 8 bits with one scale per row."""
        if form != Form(8):
            raise QuantizationError(f"{name}: look-ups of int8 rows have 8 bits and one scale per row, not {form}")

    def replace(self, graph: ir.Graph, table: Table, form: Form) -> None:
        """Put the look-ups of codes and scales, and their product, in the place of a look-up."""
        codes, scales = (f"{table.name}.{part}" for part in ("int8", "scale"))
        if codes not in graph.initializers:
            values, steps = quantize_rows(table.rows())
            add_initializer(graph, codes, values)
            add_initializer(graph, scales, steps[:, None])
        name = str(table.node.outputs[0].name)
        one = add_initializer(graph, "gather_rows.one", np.array(1, np.float32))
        zero = add_initializer(graph, "gather_rows.zero", np.array(0, np.int8))
        rows = make_node("Gather", [graph.initializers[codes], table.ids], f"{name}.codes", {"axis": 0})
        numbers = make_node("DequantizeLinear", [rows.outputs[0], one, zero], f"{name}.numbers")
        steps_of_rows = make_node("Gather", [graph.initializers[scales], table.ids], f"{name}.steps", {"axis": 0})
        product = make_node("Mul", [numbers.outputs[0], steps_of_rows.outputs[0]], f"{name}.rows")
        replace_node(graph, table.node, [rows, numbers, steps_of_rows, product])
