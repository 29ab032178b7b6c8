"""A layer's loudest inputs stored twice: codes, and the codes of what those miss.

What `float_inputs` multiplies in float beside a layer, whose nodes cost more than its bytes, goes into the quantized
product itself, behind the other inputs:

    x ─┬─ Mul(mask [K], 0 at the k channels) ─┐
       └─ Gather(the k channels, twice) ──────┴─ Concat ── quantized product [K + 2k, N] ── y

The weights of the k channels are zero in their old places. Behind them stand the codes of what they were, and then of
the error of these: two codes of 4 bits are as fine as one of 8. Error feedback does all of it, for the Gram of the
longer input says that the last k columns are the same numbers as those before: the errors of all others are fed to the
loud columns, which come late, and theirs to their doubles. Blocks of the loud ones hold nothing else, so neither their
weights nor, where the operator rounds inputs by block, their loudness touches other channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import Float32, Linear
from graphs.store import add_initializer, make_node
from quant.calibration.statistics import InputStatistics
from quant.weights.float_inputs import Channels


@dataclass(frozen=True)
class Longer:
    """A layer of K inputs as one of K + 2k.

    Attributes:
        channels: [k] int64, rising: the inputs that are doubled.
        rows: [N, K + 2k] float32.
        inputs: What meets it.
    """

    channels: Channels
    rows: Float32
    inputs: InputStatistics


def double_rows(rows: Float32, form: Form, inputs: InputStatistics | None) -> Longer:
    """Return a layer whose loudest inputs stand twice behind the others, as its form asks.

    Args:
        rows: [N, K] float32.
        form: Says how many.
        inputs: Their peaks say which, and their Gram what is fed to them.

    Raises:
        QuantizationError: Blocks would hold other inputs beside the doubled ones, or there is no Gram.
    """
    block_size, num_inputs = form.block_size or 1, rows.shape[1]
    if form.doubled_inputs % block_size or num_inputs % block_size:
        raise QuantizationError(
            f"{form.doubled_inputs} of {num_inputs} inputs stored twice do not fill blocks of {block_size}"
        )
    if inputs is None or inputs.gram is None:
        raise QuantizationError("inputs are stored twice by error feedback, which needs calibration")
    channels = np.sort(np.argsort(-inputs.peaks, kind="stable")[: form.doubled_inputs]).astype(np.int64)
    left = rows.copy()
    left[:, channels] = 0
    longer = np.concatenate([left, rows[:, channels], np.zeros((len(rows), len(channels)), np.float32)], axis=1)
    return Longer(channels, longer, _longer_inputs(inputs, inputs.gram, channels))


def _longer_inputs(inputs: InputStatistics, gram: Float32, channels: Channels) -> InputStatistics:
    quiet = np.setdiff1d(np.arange(len(gram)), channels)
    order = np.concatenate([quiet, channels, channels])
    places = np.concatenate([quiet, np.arange(len(gram), len(gram) + 2 * len(channels))])
    size = len(gram) + 2 * len(channels)
    longer, peaks = np.zeros((size, size), np.float32), np.zeros(size, np.float32)
    longer[np.ix_(places, places)] = gram[np.ix_(order, order)]
    peaks[places] = inputs.peaks[order]
    return InputStatistics(inputs.num_rows, peaks, longer)


def shortened(longer: Float32, channels: Channels) -> Float32:
    """Return the matrix [N, K] that a longer one [N, K + 2k] stands for."""
    end = longer.shape[1] - 2 * len(channels)
    rows = np.array(longer[:, :end], np.float32)
    rows[:, channels] = longer[:, end : end + len(channels)] + longer[:, end + len(channels) :]
    return rows


def lengthened(x: Float32, channels: Channels) -> Float32:
    """Return inputs [..., K] as the longer layer reads them, [..., K + 2k]."""
    quiet = np.array(x, np.float32)
    quiet[..., channels] = 0
    return np.concatenate([quiet, x[..., channels], x[..., channels]], axis=-1)


class DoubledInputs:
    """Writes the nodes; layers that read one input share them."""

    def __init__(self) -> None:
        self._inputs: dict[tuple[ir.Value, bytes], ir.Value] = {}

    def longer(self, graph: ir.Graph, linear: Linear, channels: Channels) -> ir.Value:
        """Return a layer's input [..., K + 2k], in front of the layer."""
        key = (linear.input, channels.tobytes())
        if key not in self._inputs:
            x, name = linear.input, f"{linear.input.name}.doubled{len(self._inputs)}"
            mask = np.ones(linear.num_inputs, np.float32)
            mask[channels] = 0
            quiet = make_node("Mul", [x, add_initializer(graph, f"{name}.mask", mask)], f"{name}.quiet")
            twice = add_initializer(graph, f"{name}.channels", np.concatenate([channels, channels]))
            loud = make_node("Gather", [x, twice], f"{name}.loud", {"axis": -1})
            whole = make_node("Concat", [quiet.outputs[0], loud.outputs[0]], name, {"axis": -1})
            graph.insert_before(linear.node, [quiet, loud, whole])
            self._inputs[key] = whole.outputs[0]
        return self._inputs[key]
