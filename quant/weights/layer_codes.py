"""The codes of one layer of a graph, by the rounding that its form names, and what stays in float beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import Float32, Linear, Table
from quant.calibration.statistics import InputStatistics
from quant.rounding.block_codes import BlockCodes
from quant.rounding.feedback import round_rows_with_feedback
from quant.rounding.grid import StepGrid
from quant.rounding.table import load_rounding
from quant.weights.doubled_inputs import double_rows, shortened
from quant.weights.float_inputs import Channels, Split, refuse_uncalibrated, split_rows

LEVELS = 127
"""Codes with one scale per row run from -127 to 127; -128 is left out so that the grid is symmetric."""
ROW_ROUNDINGS = ("rtn", "gptq")
"""How codes with one scale per row may be chosen."""

_SMALLEST = np.float32(1e-12)  # keeps an all-zero row from dividing by zero; far below any weight
_ZERO_CODE = 128  # of int8 codes while they are uint8


@dataclass(frozen=True)
class LayerCodes:
    """A layer in blocks of codes, and the inputs that stay in float.

    Attributes:
        codes: Of all other weights; [N, K + 2k] where k inputs are doubled.
        channels: [k] int64, the inputs in float.
        float_rows: [N, k] float32, their weights.
        doubled: [k] int64, the inputs whose weights stand twice behind the others.
    """

    codes: BlockCodes
    channels: Channels
    float_rows: Float32
    doubled: Channels = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def without_float(cls, codes: BlockCodes) -> LayerCodes:
        """Return a layer all of whose inputs meet codes."""
        return cls(codes, np.zeros(0, np.int64), np.zeros((len(codes.codes), 0), np.float32))

    def weights(self, num_inputs: int) -> Float32:
        """Return the matrix [N, K] float32 that this stands for; K is `num_inputs`."""
        if len(self.doubled):
            return shortened(self.codes.weights(num_inputs + 2 * len(self.doubled)), self.doubled)
        return _put_back(self.codes.weights(num_inputs), self.channels, self.float_rows)


@dataclass(frozen=True)
class RowCodes:
    """A layer in int8 codes with one scale per output, and the inputs that stay in float.

    Attributes:
        codes: [N, K] int8.
        scales: [N] float32.
        channels: [k] int64, the inputs in float; their codes are 0.
        float_rows: [N, k] float32, their weights.
    """

    codes: NDArray[np.int8]
    scales: Float32
    channels: Channels
    float_rows: Float32

    def weights(self) -> Float32:
        """Return the matrix [N, K] float32 that this stands for."""
        return _put_back(self.codes * self.scales[:, None], self.channels, self.float_rows)


def refuse_rounding(name: str, form: Form, inputs: Mapping[str, InputStatistics]) -> None:
    """Refuse a form whose rounding cannot make it.

    Args:
        name: The layer's.
        form: Bits and rounding.
        inputs: What calibration recorded, by layer.

    Raises:
        QuantizationError: No rounding has that name, or it has no such bits, or it wants a Gram that is not there.
    """
    rounding = load_rounding(form.rounding)
    if form.bits not in rounding.widths:
        widths = " or ".join(map(str, rounding.widths))
        raise QuantizationError(f"{name}: the rounding {form.rounding} makes codes of {widths} bits, not {form.bits}")
    if rounding.needs_gram and (name not in inputs or inputs[name].gram is None):
        raise QuantizationError(f"{name}: the rounding {form.rounding} needs the Gram of calibration samples")
    refuse_uncalibrated(name, form, inputs)


def round_layer(
    layer: Linear | Table, form: Form, block_size: int, inputs: Mapping[str, InputStatistics]
) -> LayerCodes:
    """Return a layer's weights in codes.

    Args:
        layer: A linear layer, or a table that is rounded as the head that it is tied to.
        form: Bits, rounding and float inputs.
        block_size: Weights per scale.
        inputs: What calibration recorded, by layer.

    Raises:
        QuantizationError: The rounding refuses them; the message names the layer.
    """
    try:
        rows = layer.rows()
        if form.doubled_inputs:
            return _doubled(rows, form, block_size, inputs.get(layer.name))
        split = split_rows(rows, form, inputs.get(layer.name))
        codes = load_rounding(form.rounding)(split.rows, form.bits, block_size, split.inputs)
        return LayerCodes(codes, *_finished(split, lambda: codes.weights(rows.shape[1])))
    except QuantizationError as error:
        raise QuantizationError(f"{layer.name}: {error}") from error


def _doubled(rows: Float32, form: Form, block_size: int, inputs: InputStatistics | None) -> LayerCodes:
    longer = double_rows(rows, form, inputs)
    codes = load_rounding(form.rounding)(longer.rows, form.bits, block_size, longer.inputs)
    return replace(LayerCodes.without_float(codes), doubled=longer.channels)


def round_rows(rows: Float32, form: Form, inputs: InputStatistics | None) -> RowCodes:
    """Return weights in int8 codes with one scale per row.

    Args:
        rows: [N, K] float32, one row per output.
        form: 8 bits, "rtn" or "gptq", and float inputs.
        inputs: For "gptq" and float inputs.
    """
    split = split_rows(rows, form, inputs)
    codes, scales = quantize_rows(split.rows)
    if form.rounding == "gptq":
        fed = round_rows_with_feedback(split.rows, StepGrid(scales[:, None], 8, lowest=1), split.inputs)
        codes = (fed.astype(np.int16) - _ZERO_CODE).astype(np.int8)
    return RowCodes(codes, scales, *_finished(split, lambda: codes * scales[:, None]))


def quantize_rows(rows: Float32) -> tuple[NDArray[np.int8], Float32]:
    """Return codes [N, K] int8 and scales [N] float32 with rows ~ codes * scales[:, None], each code the nearest.

    Args:
        rows: [N, K] float32, one row per output.
    """
    scales = np.maximum(np.abs(rows).max(axis=1), _SMALLEST).astype(np.float32) / np.float32(LEVELS)
    codes = np.rint(rows / scales[:, None]).astype(np.int8)
    return codes, scales


def _finished(split: Split, rounded: Callable[[], Float32]) -> tuple[Channels, Float32]:
    """Return the channels in float and their weights; what was rounded is asked for only where there are any."""
    return split.channels, split.finished(rounded()) if len(split.channels) else split.float_rows


def _put_back(rows: Float32, channels: Channels, float_rows: Float32) -> Float32:
    if len(channels):
        rows = np.array(rows, np.float32)
        rows[:, channels] = float_rows.astype(np.float16)
    return np.asarray(rows, np.float32)
