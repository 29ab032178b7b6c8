"""Ways to choose codes by name. To add one: a file here with a function of `Rounding`'s shape, and a line below."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from bundle.errors import QuantizationError
from quant.calibration import InputStatistics
from quant.layers import Float32
from quant.rounding.block_codes import BlockCodes


class Rounding(Protocol):
    """Chooses the codes of one matrix."""

    def __call__(self, rows: Float32, bits: int, block_size: int, inputs: InputStatistics | None) -> BlockCodes:
        """Return codes for rows [N, K].

        Raises:
            QuantizationError: The rounding has no such bits, or wants statistics that it was not given.
        """


ROUNDINGS = {
    "rtn": "quant.rounding.rtn:round_to_nearest",
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
