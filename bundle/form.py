"""How the weights of one layer are stored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """How the weights of one layer are stored.

    Attributes:
        bits: Per weight.
        block_size: Inputs that share a scale; None: one scale per output.
        rounding: How codes are chosen, a name of `quant.rounding.table.ROUNDINGS`.
        float_inputs: How many inputs, the loudest in calibration, are multiplied by float weights beside the rest.
        doubled_inputs: How many of these have their weights stored twice instead: codes, and codes of what those miss.
    """

    bits: int
    block_size: int | None = None
    rounding: str = "rtn"
    float_inputs: int = 0
    doubled_inputs: int = 0

    @property
    def loud_inputs(self) -> int:
        """How many inputs are kept finer than the rest."""
        return self.float_inputs or self.doubled_inputs
