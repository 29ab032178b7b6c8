"""AWQ: weights that meet loud channels are made larger before rounding, so that they lose less (arXiv 2306.00978).

A weight's rounding error is multiplied by what it meets. Scaling channel j by s_j = (rms X_j)^a divides the error of
its weights by s_j, at the price of a coarser grid for the others of its block. The exponent a is searched on a grid,
a = 0 (unscaled) included, for the least error of the layers that read the input,

    sum of tr(dW G dW^T),   dW = round(s W) / s - W,   G = E[x x^T]

which is the exact mean squared error of their outputs over the calibration rows, found with the rounding that the
layers will get, or with round to nearest where that is error feedback. The published search measures mean |X|, and the
output of the whole block on samples, instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bundle.form import Form
from graphs.layers import Float32, Linear
from quant.calibration.statistics import InputStatistics
from quant.rounding.table import load_rounding
from quant.scaling.folding import Fold, find_folds
from quant.scaling.statistics import require_gram
from quant.weights.layer_codes import quantize_rows

EXPONENTS = tuple(step / 10 for step in range(11))
"""Tried for a."""

_SEARCHED_INSTEAD = "rtn"
"""Of roundings with error feedback, which take seconds a layer: eleven of them would take minutes a model."""


def protect(
    model: ir.Model, forms: Mapping[str, Form], inputs: Mapping[str, InputStatistics]
) -> dict[str, InputStatistics]:
    """Scale the inputs of layers that will be quantized, in place; the model computes what it did.

    Args:
        model: Of float32 weights.
        forms: Weight name to the form that each layer will get.
        inputs: Weight name to calibration statistics with Grams.

    Returns:
        The statistics of all layers, those of scaled inputs scaled.

    Raises:
        QuantizationError: A layer that could be scaled has no Gram.
    """
    scaled = dict(inputs)
    for fold in find_folds(model.graph):
        readers = [reader for reader in fold.readers if reader.name in forms]
        if readers:
            gram = require_gram(inputs, readers[0].name, "awq")
            layers = [_Layer.of(reader, forms[reader.name], inputs[reader.name]) for reader in readers]
            spread = fold.apply(_best_divisors(fold, layers, gram))
            for reader in readers:
                scaled[reader.name] = inputs[reader.name].scaled(spread)
    return scaled


@dataclass(frozen=True)
class _Layer:
    """One reader of an input: its rows [N, K] in memory, its form, its statistics."""

    rows: Float32
    form: Form
    inputs: InputStatistics

    @classmethod
    def of(cls, linear: Linear, form: Form, inputs: InputStatistics) -> _Layer:
        return cls(np.ascontiguousarray(linear.rows()), form, inputs)

    def error(self, spread: Float32, gram: Float32) -> float:
        """Return the mean squared error of the layer's output when its input is divided by spread [K]."""
        difference = _rounded(self.rows * spread, self.form, self.inputs.scaled(spread)) / spread - self.rows
        return float(np.vdot(difference @ gram, difference))


def _best_divisors(fold: Fold, layers: Sequence[_Layer], gram: Float32) -> Float32:
    loudness = fold.largest(np.sqrt(np.diagonal(gram)))
    tried = [_divisors(loudness, exponent) for exponent in EXPONENTS]
    errors = [sum(layer.error(each[fold.channels], gram) for layer in layers) for each in tried]
    return tried[int(np.argmin(errors))]


def _divisors(loudness: Float32, exponent: float) -> Float32:
    """Return s centred about 1, [num_channels]; 1 for channels that are never active."""
    powers = np.where(loudness > 0, loudness, 1) ** exponent
    return np.asarray(powers / np.sqrt(powers.max() * powers.min()), np.float32)


def _rounded(rows: Float32, form: Form, inputs: InputStatistics) -> Float32:
    """Return rows [N, K] as they will be after rounding, or after the one that is searched instead."""
    if form.block_size is None:
        codes, scales = quantize_rows(rows)
        return np.asarray(codes * scales[:, None], np.float32)
    rounding = load_rounding(form.rounding)
    if rounding.needs_gram:
        rounding = load_rounding(_SEARCHED_INSTEAD)
    return rounding(rows, form.bits, form.block_size, inputs).weights(rows.shape[1])
