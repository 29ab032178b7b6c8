"""Ways to choose codes by name. To add one: a file here with a `Rounding`, and a line below."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from bundle.errors import QuantizationError
from graphs.layers import Float32
from quant.calibration.statistics import InputStatistics
from quant.rounding.block_codes import BlockCodes


class Rounding(Protocol):
    """Chooses the codes of one matrix."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the bits per weight that it can make codes of."""

    @property
    def needs_gram(self) -> bool:
        """Return whether it reads the Gram of the layer's inputs."""

    def __call__(self, rows: Float32, bits: int, block_size: int, inputs: InputStatistics | None = None) -> BlockCodes:
        """Return codes for rows [N, K].

        Raises:
            QuantizationError: It wants statistics that it was not given, or weights are not finite.
        """


ROUNDINGS = {
    "rtn": "quant.rounding.rtn:round_to_nearest",
    "rtn-positive": "quant.rounding.rtn:round_to_positive",
    "hqq": "quant.rounding.hqq:round_half_quadratic",
    "gptq": "quant.rounding.feedback:round_with_feedback",
    "gptq-positive": "quant.rounding.feedback:round_positive_with_feedback",
    "gptq-zeros": "quant.rounding.feedback:round_range_with_feedback",
    "gptq-coded": "quant.rounding.feedback:round_coded_with_feedback",
    "ternary": "quant.rounding.ternary:round_to_ternary",
    "ternary-mean": "quant.rounding.ternary_mean:round_about_mean",
    "ternary-planes": "quant.rounding.planes:round_to_planes",
    "ternary-gptq": "quant.rounding.feedback:round_ternary_with_feedback",
    "four-level": "quant.rounding.four_level:round_to_four_levels",
}


def load_rounding(name: str) -> Rounding:
    """Return a rounding.

    Raises:
        QuantizationError: None has that name.
    """
    if name not in ROUNDINGS:
        raise QuantizationError(f"unknown rounding {name!r}; known: {', '.join(ROUNDINGS)}")
    module, attribute = ROUNDINGS[name].split(":")
    found: Rounding = getattr(import_module(module), attribute)
    return found
