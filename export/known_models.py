"""Which models are exported, by which file, proved by which test: read from one data file."""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

_FILE = Path(__file__).with_name("known_models.tsv")
Reached = Literal["runs with parity", "runs by pattern", "not yet", "not planned"]
"""What a test holds: equal to a public implementation, or to one written from a paper; or nothing, for a reason."""


@dataclass(frozen=True)
class KnownModel:
    """A row of `known_models.tsv`.

    Attributes:
        model_type: As a checkpoint's config names it.
        pattern: What it is made of, in words.
        file: That exports it, from the root of the repository; "" where none does.
        test: That proves it; "" where none does.
        reached: How far it is; "not yet" and "not planned" say why in `pattern`.
    """

    model_type: str
    pattern: str
    file: str
    test: str
    reached: Reached


def why_not_built(model_type: str) -> str | None:
    """Return what a model that no file exports would want; None where the table does not know it."""
    rows = [row for row in known_models() if row.model_type == model_type and not row.file]
    return rows[0].pattern if rows else None


def known_models() -> tuple[KnownModel, ...]:
    """Return every row, by model type.

    Raises:
        ValueError: A row is no row of this table.
    """
    names = [field.name for field in fields(KnownModel)]
    with _FILE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    if rows[0] != names or any(len(row) != len(names) or row[-1] not in get_args(Reached) for row in rows[1:]):
        raise ValueError(
            f"{_FILE} is no table of {', '.join(names)}; the last is one of {', '.join(get_args(Reached))}"
        )
    return tuple(sorted((KnownModel(*row) for row in rows[1:]), key=lambda row: row.model_type))  # type: ignore[arg-type]
