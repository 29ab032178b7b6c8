"""Scalings by name. To add one: a file here with a `Scaling`, and a line below."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Protocol

import onnx_ir as ir

from bundle.errors import QuantizationError
from bundle.form import Form
from quant.calibration.statistics import InputStatistics


class Scaling(Protocol):
    """Makes a float32 graph easier to quantize without changing what it computes."""

    def __call__(
        self, model: ir.Model, forms: Mapping[str, Form], inputs: Mapping[str, InputStatistics]
    ) -> dict[str, InputStatistics]:
        """Rewrite weights in place and return the statistics that the layers have then.

        Args:
            model: Of float32 weights.
            forms: Weight name to the form that each layer will get.
            inputs: Weight name to calibration statistics.

        Raises:
            QuantizationError: A layer that could be scaled lacks statistics.
        """


SCALINGS = {
    "smoothquant": "quant.scaling.smoothquant:smooth",
    "awq": "quant.scaling.awq:protect",
}


def load_scaling(name: str) -> Scaling:
    """Return a scaling.

    Raises:
        QuantizationError: None has that name.
    """
    if name not in SCALINGS:
        raise QuantizationError(f"unknown scaling {name!r}; known: {', '.join(SCALINGS)}")
    module, attribute = SCALINGS[name].split(":")
    found: Scaling = getattr(import_module(module), attribute)
    return found
