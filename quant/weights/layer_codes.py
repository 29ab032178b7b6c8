"""The codes of one layer of a graph, by the rounding that its form names."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import Linear
from quant.calibration.statistics import InputStatistics
from quant.rounding.block_codes import BlockCodes
from quant.rounding.table import load_rounding


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


def round_layer(linear: Linear, form: Form, block_size: int, inputs: Mapping[str, InputStatistics]) -> BlockCodes:
    """Return a layer's weights in codes.

    Args:
        linear: The layer.
        form: Bits and rounding.
        block_size: Weights per scale.
        inputs: What calibration recorded, by layer.

    Raises:
        QuantizationError: The rounding refuses them; the message names the layer.
    """
    try:
        return load_rounding(form.rounding)(linear.rows(), form.bits, block_size, inputs.get(linear.name))
    except QuantizationError as error:
        raise QuantizationError(f"{linear.name}: {error}") from error
