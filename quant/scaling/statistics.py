"""What a scaling asks of calibration."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import QuantizationError
from graphs.layers import Float32
from quant.calibration.statistics import InputStatistics


def require_statistics(inputs: Mapping[str, InputStatistics], name: str, method: str) -> InputStatistics:
    """Return the statistics of a layer's input.

    Raises:
        QuantizationError: There are none.
    """
    if name not in inputs:
        raise QuantizationError(f"{name}: {method} needs calibration samples; give them with --calibration FILE.jsonl")
    return inputs[name]


def require_gram(inputs: Mapping[str, InputStatistics], name: str, method: str) -> Float32:
    """Return the Gram of a layer's input, [K, K].

    Raises:
        QuantizationError: There is none.
    """
    gram = require_statistics(inputs, name, method).gram
    if gram is None:
        raise QuantizationError(f"{name}: {method} needs the Gram of the calibration inputs, not their peaks alone")
    return gram
