"""Embedding tables with int8 codes as `com.microsoft::GatherBlockQuantized`: a quarter of the bytes.

    Gather(table [V, D], ids)  ->  GatherBlockQuantized(codes [V, D] uint8, ids, scales [V, D / block])

Rows are decoded when they are looked up. (code - 128) * scale is all the arithmetic: the operator equals its reference
exactly.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bundle.errors import QuantizationError
from quant.graphs import CONTRIB, add_initializer, make_node, replace_node
from quant.layers import Float32, Table, find_tables
from quant.rounding.rtn import round_to_nearest
from quant.weights.weight_pass import Form, WeightPass

BITS = 8
BLOCK_SIZES = (16, 32, 64, 128)


def reference(ids: NDArray[np.int64], rows: Float32, block_size: int) -> Float32:
    """Return rows[ids] as the operator gives it: [*ids.shape, D] float32.

    Args:
        ids: Any shape.
        rows: [V, D] float32.
        block_size: Columns per scale.
    """
    return round_to_nearest(rows, BITS, block_size).weights(rows.shape[1])[ids]


class GatherInt8(WeightPass):
    """Replaces the named embedding look-ups by GatherBlockQuantized.

    Args:
        layers: Weight name to 8 bits and a block size.
    """

    def check(self, name: str, form: Form) -> None:
        """Refuse other widths and block sizes that the operator lacks."""
        if form.bits != BITS or form.block_size not in BLOCK_SIZES:
            raise QuantizationError(f"{name}: GatherInt8 stores {BITS} bits in blocks of {BLOCK_SIZES}, not {form}")

    def layers_of(self, graph: ir.Graph) -> set[str]:
        """Return the names of the graph's embedding tables."""
        return {table.name for table in find_tables(graph)}

    def rewrite(self, graph: ir.Graph) -> None:
        """Replace the look-ups."""
        for table in find_tables(graph):
            form = self._forms.get(table.name)
            if form is not None and form.block_size is not None:
                _rewrite(graph, table, form.block_size)
                graph.opset_imports[CONTRIB] = 1


def _rewrite(graph: ir.Graph, table: Table, block_size: int) -> None:
    name = f"{table.name}.int8"
    if name not in graph.initializers:
        blocks = round_to_nearest(table.rows(), BITS, block_size)
        add_initializer(graph, name, blocks.codes[:, : table.width])
        add_initializer(graph, f"{table.name}.scale", blocks.scales)
    inputs = [graph.initializers[name], table.ids, graph.initializers[f"{table.name}.scale"]]
    attributes = {"bits": BITS, "block_size": block_size, "gather_axis": 0, "quantize_axis": 1}
    node = make_node("GatherBlockQuantized", inputs, f"{table.node.outputs[0].name}.rows", attributes, CONTRIB)
    replace_node(graph, table.node, [node])
