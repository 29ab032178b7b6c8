"""Quality measurements held against their thresholds, and the names under which they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

CANARY = "canary_cosine"
"""The measure that is taken on the run recorded at export, not on samples; one gate per graph."""


def canary_gate(component: str) -> str:
    """Return the name of the gate that holds a graph to its recorded run."""
    return f"{CANARY}/{component}"


class Gate(BaseModel):
    """One quality measurement held against its threshold.

    Attributes:
        name: e.g. "clear_agreement", "accuracy/colour", "cosine_mean".
        value: What was measured.
        limit: The threshold.
        direction: "min": value must be at least the limit; "max": at most.
        n: Samples behind the value.
        passed: The verdict.
        basis: "samples": measured on inputs that mean something; "canary": on the one run recorded at export, which
            tells a broken graph from a working one and nothing of quality.
        is_overridden: True where the user set the limit, not the table in `quant/quality/gate.py`.
    """

    # a measured NaN is written as such: null would be refused when the manifest is read back
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    name: str
    value: float
    limit: float
    direction: Literal["min", "max"]
    n: int = Field(ge=0)
    passed: bool
    basis: Literal["samples", "canary"] = "samples"
    is_overridden: bool = False


class Unmeasured(BaseModel):
    """A gate that was neither passed nor failed, for the samples could not tell.

    Attributes:
        name: As a `Gate` of it would be named.
        reason: What the samples lack, such as "no sample has an image".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    reason: str


def reasons(unmeasured: Sequence[Unmeasured]) -> dict[str, str]:
    """Return the names of gates that were not measured, joined by commas, by reason."""
    names: dict[str, list[str]] = {}
    for each in unmeasured:
        names.setdefault(each.reason, []).append(each.name)
    return {reason: ", ".join(those) for reason, those in names.items()}
