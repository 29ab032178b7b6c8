"""What every weight scheme is: a pass that replaces named layers of a graph, in place, and checks that it did."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import onnx_ir as ir

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.store import drop_unused
from quant.calibration.statistics import InputStatistics


class WeightPass(ABC):
    """Replaces the float32 weights of named layers.

    Args:
        layers: Weight name to the form that it gets.
        inputs: Weight name to what met the layer in calibration; empty where nothing was calibrated.

    Raises:
        QuantizationError: The scheme has no such form.
    """

    def __init__(self, layers: Mapping[str, Form], inputs: Mapping[str, InputStatistics] | None = None) -> None:
        self._forms = dict(layers)
        self._inputs = dict(inputs or {})
        for name, form in self._forms.items():
            self.check(name, form)

    def __call__(self, model: ir.Model) -> None:
        """Rewrite the layers of a model in place and drop what they no longer read.

        Raises:
            QuantizationError: The graph has no such layer, cannot hold the operators, or still holds one in float32.
        """
        missing = self._forms.keys() - self.layers_of(model.graph)
        if missing:
            raise QuantizationError(f"the graph has no layer named {', '.join(sorted(missing))}")
        self.rewrite(model.graph)
        drop_unused(model)
        left = self._forms.keys() & self.layers_of(model.graph)
        if left:
            raise QuantizationError(f"still float32 after {type(self).__name__}: {', '.join(sorted(left))}")

    @abstractmethod
    def check(self, name: str, form: Form) -> None:
        """Refuse a form that this scheme does not have, or that is known to be bad, with a QuantizationError."""

    @abstractmethod
    def layers_of(self, graph: ir.Graph) -> set[str]:
        """Return the names of all layers of this pass's kind that are still float32."""

    @abstractmethod
    def rewrite(self, graph: ir.Graph) -> None:
        """Replace the layers' nodes, leaving the old weights to be dropped."""
