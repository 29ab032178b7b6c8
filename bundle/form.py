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
    """

    bits: int
    block_size: int | None = None
    rounding: str = "rtn"
    float_inputs: int = 0
