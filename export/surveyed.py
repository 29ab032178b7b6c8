"""Which published systems are run, by what, proved by which test: read from one data file."""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from export.known_models import known_models

_FILE = Path(__file__).with_name("surveyed.tsv")
Verdict = Literal["runs with parity", "runs by pattern", "not yet", "not planned"]
"""Held to a public implementation of it; a test holds the pattern that it is an instance of; nothing yet; nothing."""


@dataclass(frozen=True)
class SurveyedSystem:
    """A row of `surveyed.tsv`.

    Attributes:
        system: Its name, or its paper's where it has none.
        kind: As the survey sorts it.
        scope: "core": among those that are to run before others; "servable".
        reached: How far it is.
        served_by: The `model_type` or the file that runs it; "" where none does.
        test: That proves it; "" where the model type's own test does, or none.
        how: What of it runs, or why it does not.
    """

    system: str
    kind: str
    scope: Literal["core", "servable"]
    reached: Verdict
    served_by: str
    test: str
    how: str

    def proof(self) -> tuple[str, str]:
        """Return the file that runs it and the test that proves it, from the repository's root; "" where none does."""
        for model in known_models():
            if model.model_type == self.served_by:
                return model.file, self.test or model.test
        return self.served_by, self.test


def surveyed_systems() -> tuple[SurveyedSystem, ...]:
    """Return every row: core first, by kind and name.

    Raises:
        ValueError: A row is no row of this table.
    """
    names = [field.name for field in fields(SurveyedSystem)]
    with _FILE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    if rows[0] != names or any(len(row) != len(names) or row[3] not in get_args(Verdict) for row in rows[1:]):
        raise ValueError(f"{_FILE} is no table of {', '.join(names)}; reached is one of {', '.join(get_args(Verdict))}")
    systems = [SurveyedSystem(*row) for row in rows[1:]]  # type: ignore[arg-type]
    return tuple(sorted(systems, key=lambda row: (row.scope, row.kind, row.system.lower())))
