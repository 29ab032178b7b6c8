"""A layer's loudest inputs multiplied in float beside the quantized product (LLM.int8(), arXiv 2208.07339, as a graph).

A few channels of some inputs are thousands of times louder than the rest (Sun et al., arXiv 2402.17762). Whoever
rounds the input loses the rest in their step, and whoever rounds the weights makes an error that they multiply.
So k channels, chosen once from calibration, leave the quantized product:

    x ── Mul(mask [K], 0 at the k channels) ── quantized product ── + ── y
    x ── Gather(the k channels) ── MatMul(their weights [k, N]) ────┘

The weights of those channels are stored in float16, [N, k], and are float32 again once a runtime has loaded them. Where
calibration kept the Gram G, they also take up the error of the rounded weights (with q the rounded channels, f the
others, their least squares answer is W_f + (W_q - Q_q) G_qf G_ff^-1), and error feedback is told what they will take
up: it sees the Gram of what is left, G_qq - G_qf G_ff^-1 G_fq.

Unlike LLM.int8(), which looks for loud channels in every input anew, the channels are fixed: prompts and steps, and a
row alone or in a batch, are computed alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import Float32, Linear
from graphs.store import add_initializer, make_node
from quant.calibration.statistics import InputStatistics

_RIDGE = 1e-4
"""Of the mean of G_ff's diagonal, added to it: channels that never spoke take nothing up."""

Channels = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """The weights of a layer, taken apart.

    Attributes:
        channels: [k] int64, rising: the inputs that stay in float.
        rows: [N, K] float32, zero at those channels: what is to be rounded.
        inputs: What the rounding should know of the layer's input; None where nothing was calibrated.
        float_rows: [N, k] float32, the weights of the channels.
        take_up: [K, k] float32: what the channels take up of an error of the rounded weights; None: nothing.
    """

    channels: Channels
    rows: Float32
    inputs: InputStatistics | None
    float_rows: Float32
    take_up: Float32 | None = None

    def finished(self, rounded: Float32) -> Float32:
        """Return the weights of the float channels [N, k], given what the rounded rows [N, K] stand for."""
        if self.take_up is None:
            return self.float_rows
        return np.asarray(self.float_rows + (self.rows - rounded) @ self.take_up, np.float32)


def refuse_uncalibrated(name: str, form: Form, inputs: Mapping[str, InputStatistics]) -> None:
    """Refuse to look for the loudest inputs of a layer that was not calibrated.

    Raises:
        QuantizationError: The form has float inputs, and nobody knows which.
    """
    if form.loud_inputs and name not in inputs:
        raise QuantizationError(f"{name}: which {form.loud_inputs} inputs are loudest is known from calibration alone")


def split_rows(rows: Float32, form: Form, inputs: InputStatistics | None) -> Split:
    """Return a layer's weights taken apart as its form asks.

    Args:
        rows: [N, K] float32.
        form: Says how many inputs stay in float.
        inputs: Their peaks say which; needed where there are any.
    """
    if not form.float_inputs or inputs is None:
        return Split(np.zeros(0, np.int64), rows, inputs, rows[:, :0])
    channels = np.sort(np.argsort(-inputs.peaks, kind="stable")[: form.float_inputs]).astype(np.int64)
    left = rows.copy()
    left[:, channels] = 0
    if inputs.gram is None:
        return Split(channels, left, inputs, rows[:, channels])
    take_up, gram = _conditional(inputs.gram, channels)
    return Split(channels, left, replace(inputs, gram=gram), rows[:, channels], take_up)


def _conditional(gram: Float32, channels: Channels) -> tuple[Float32, Float32]:
    """Return G_qf G_ff^-1 as [K, k], zero at f, and the Gram that is left when f takes up what it can, zero at f."""
    among = gram[np.ix_(channels, channels)].astype(np.float64)
    among[np.diag_indices_from(among)] += _RIDGE * np.trace(among) / len(among) or 1.0
    across = gram[:, channels].astype(np.float64)
    take_up = np.linalg.solve(among, across.T).T
    left = gram - take_up @ across.T
    for matrix in (take_up, left):
        matrix[channels] = 0
    left[:, channels] = 0
    return np.asarray(take_up, np.float32), np.asarray(left, np.float32)


@dataclass(frozen=True)
class ApartInput:
    """A layer's input with its loudest channels taken out.

    Attributes:
        quiet: x with zeros at those channels.
        loud: [..., k], the channels alone.
    """

    quiet: ir.Value
    loud: ir.Value


class FloatInputs:
    """Writes the nodes; what several layers that read one input have in common is written once."""

    def __init__(self) -> None:
        self._inputs: dict[tuple[ir.Value, bytes], ApartInput] = {}

    def apart(self, graph: ir.Graph, linear: Linear, channels: Channels) -> ApartInput:
        """Return a layer's input taken apart, in front of the layer."""
        key = (linear.input, channels.tobytes())
        if key not in self._inputs:
            x, name = linear.input, f"{linear.input.name}.apart{len(self._inputs)}"
            mask = np.ones(linear.num_inputs, np.float32)
            mask[channels] = 0
            quiet = make_node("Mul", [x, add_initializer(graph, f"{name}.mask", mask)], f"{name}.quiet")
            indices = add_initializer(graph, f"{name}.channels", channels)
            loud = make_node("Gather", [x, indices], f"{name}.loud", {"axis": -1})
            graph.insert_before(linear.node, [quiet, loud])
            self._inputs[key] = ApartInput(quiet.outputs[0], loud.outputs[0])
        return self._inputs[key]

    def product(self, graph: ir.Graph, linear: Linear, apart: ApartInput, float_rows: Float32) -> list[ir.Node]:
        """Return the nodes of the float product of a layer, the last one its result; float_rows are [N, k]."""
        name = str(linear.node.outputs[0].name)
        weight = float_weight(graph, linear.name, float_rows)
        turned = make_node("Transpose", [weight[-1].outputs[0]], f"{name}.loud_weight", {})
        return [*weight, turned, make_node("MatMul", [apart.loud, turned.outputs[0]], f"{name}.loud")]


def float_weight(graph: ir.Graph, layer: str, float_rows: Float32) -> list[ir.Node]:
    """Return the node that gives the float weights of a layer [N, k] in float32; they are stored in float16.

    Raises:
        QuantizationError: One of them is beyond float16.
    """
    loudest = np.abs(float_rows).max(initial=0)
    if not loudest <= np.finfo(np.float16).max:
        raise QuantizationError(f"{layer}: a weight of its loudest inputs is beyond float16: {loudest:g}")
    stored = float_rows.astype(np.float16)
    weight = add_initializer(graph, f"{layer}.float", stored)
    return [make_node("Cast", [weight], f"{layer}.float.{len(weight.uses())}", {"to": int(ir.DataType.FLOAT)})]
