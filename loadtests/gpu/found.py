"""What the GPU benchmark found: one line per figure, written as it comes, so that a hang loses nothing but its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from loadtests.wording import number

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Found:
    """One figure.

    Attributes:
        what: The line of the table.
        of: The column: a variant of ours, or a peer.
        value: The figure; None where there is none.
        unit: Of the value.
        note: What is to be said of it, or why there is none.
    """

    what: str
    of: str
    value: float | None
    unit: str = "ms"
    note: str = ""


def tell(folder: Path, found: Found) -> None:
    """Append a figure to the results, and say it."""
    path = folder / RESULTS
    is_cut = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as lines:
        lines.write("\n" * is_cut + json.dumps(asdict(found), ensure_ascii=False) + "\n")
    value = "-" if found.value is None else f"{found.value:.4g} {found.unit}"
    print(f"{found.of}: {found.what}: {value} {found.note}".rstrip(), flush=True)


def read_found(folder: Path) -> list[Found]:
    """Return what was found so far; a line that was cut when its section was ended is left out."""
    path = folder / RESULTS
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            found.append(Found(**json.loads(line)))
    return found


FACTS = ("machine", "operators", "sections")
"""Columns that are told as lines of their own: where it ran, what has no kernel there, what went wrong."""


def facts(found: Iterable[Found]) -> Iterator[str]:
    """Yield a line for the machine, for every operator without a kernel and for every section that failed."""
    for each in found:
        if each.of == "machine" or (each.of in FACTS and not each.value):
            yield f"{each.what}: {each.note or 'failed'}"


def table(found: Iterable[Found]) -> Table:
    """Return one table of figures: what was run down, who ran it across; a later figure replaces an earlier one."""
    cells = {(each.what, each.of): each for each in found if each.of not in FACTS}
    rows, columns = dict.fromkeys(what for what, _ in cells), dict.fromkeys(of for _, of in cells)
    made = Table("", *columns)
    for what in rows:
        made.add_row(what, *(_cell(cells.get((what, of))) for of in columns))
    return made


def _cell(found: Found | None) -> str:
    if found is None:
        return ""
    if found.value is None:
        return "failed"
    return f"{number(found.value)} {found.unit}" if found.unit != "ms" else number(found.value)
