"""SmoothQuant: part of an input's outlier channels is moved into the weights (Xiao et al., arXiv 2211.10438, eq. 4).

Activations that share a scale lose their quiet channels to a loud one. Dividing channel j by

    s_j = max|X_j|^a / max|W_j|^(1 - a)

and multiplying its weights by it brings both to about the same range. Layers that read one input share s. Where
nothing can take 1/s up, an input stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from bundle.form import Form
from graphs.layers import Float32, Linear
from quant.calibration.statistics import InputStatistics
from quant.scaling.folding import Fold, find_folds
from quant.scaling.statistics import require_statistics

STRENGTH = 0.5
"""a, the paper's default: outliers are halved on a logarithmic scale."""


def smooth(
    model: ir.Model, forms: Mapping[str, Form], inputs: Mapping[str, InputStatistics]
) -> dict[str, InputStatistics]:
    """Scale the inputs of layers that will be quantized, in place; the model computes what it did.

    Args:
        model: Of float32 weights.
        forms: Weight name to the form that each layer will get.
        inputs: Weight name to calibration statistics, of which peaks are read.

    Returns:
        The statistics of all layers, those of scaled inputs scaled.

    Raises:
        QuantizationError: A layer that could be scaled has no statistics.
    """
    scaled = dict(inputs)
    for fold in find_folds(model.graph):
        readers = [reader for reader in fold.readers if reader.name in forms]
        if readers:
            seen = require_statistics(inputs, readers[0].name, "smoothquant")
            spread = fold.apply(divisors(fold, readers, seen.peaks))
            for reader in readers:
                scaled[reader.name] = inputs[reader.name].scaled(spread)
    return scaled


def divisors(fold: Fold, readers: Sequence[Linear], peaks: Float32, strength: float = STRENGTH) -> Float32:
    """Return s, [num_channels] float32; 1 for channels that are never active or have no weights.

    Args:
        fold: Of the input.
        readers: Those that will be quantized.
        peaks: [K], the largest magnitude of each input channel.
        strength: a.
    """
    activations = fold.largest(peaks)
    weights = np.max([fold.largest(np.abs(reader.rows()).max(axis=0)) for reader in readers], axis=0)
    is_live = (activations > 0) & (weights > 0)
    quotient = np.where(is_live, activations, 1) ** strength / np.where(is_live, weights, 1) ** (1 - strength)
    return np.asarray(quotient, np.float32)
