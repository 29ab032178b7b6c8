"""`python -m export.coverage docs/models.md`: model types, surveyed systems and benchmarks as a page."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from export.known_models import known_models
from export.surveyed import SurveyedSystem, surveyed_systems

COMMAND = "python -m export.coverage docs/models.md"
_HEAD = f"""# Models, systems and benchmarks

Written by `{COMMAND}` from `export/known_models.tsv`, `export/surveyed.tsv` and
`docs/benchmarks.tsv`; `pocketvlm models` and `pocketvlm models --surveyed` print the first two. To add a family:
[add-a-model.md](add-a-model.md).

- **runs with parity**: a test holds export and answers to a public implementation of this very system, on random
  weights of odd sizes.
- **runs by pattern**: a test holds the pattern that the system is an instance of, or a small reference written from its
  paper. Its own weights were never here: a checkpoint must be in the layout that the file reads.
- **evaluation format**: `pocketvlm evaluate` reads its questions and marks the answers
  ([evaluation.md](evaluation.md)).
- **not yet**, **not planned**: nothing runs it; the reason stands beside it.

No test, no row that runs: `tests/export/test_surveyed.py` looks for every file that is named here.
"""


def coverage(benchmarks: Path) -> str:
    """Return the whole page, in Markdown.

    Args:
        benchmarks: The table of benchmarks.
    """
    return "\n".join([_HEAD, *_models(), *_systems(surveyed_systems()), *_benchmarks(benchmarks)]) + "\n"


def _models() -> Iterator[str]:
    yield "## Model types"
    rows = [
        (f"`{row.model_type}`", row.pattern, _link(row.file), _link(row.test), row.reached) for row in known_models()
    ]
    yield from _table(("model_type", "what it is", "file", "test", "reached"), rows)


def _systems(systems: Sequence[SurveyedSystem]) -> Iterator[str]:
    yield "## Surveyed systems"
    for scope, rows in groupby(systems, key=lambda row: row.scope):
        counted = Counter(row.reached for row in rows)
        yield f"{scope}: " + ", ".join(f"{number} {reached}" for reached, number in counted.most_common()) + "  "
    for (scope, kind), rows in groupby(systems, key=lambda row: (row.scope, row.kind)):
        yield f"\n### {kind}, {scope}"
        yield from _table(("system", "reached", "by", "test", "how, or why not"), (_system(row) for row in rows))


def _system(row: SurveyedSystem) -> tuple[str, ...]:
    file, test = row.proof()
    return row.system, row.reached, _link(file), _link(test), row.how


def _benchmarks(table: Path) -> Iterator[str]:
    yield "## Benchmarks"
    with table.open(encoding="utf-8", newline="") as file:
        rows = [
            (name, "evaluation format", f"`{kind}`", *rest) for name, kind, *rest in csv.reader(file, delimiter="\t")
        ]
    yield from _table(("benchmark", "reached", "format", "columns", "how it is marked, and what is not made"), rows[1:])


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "\n" + _line(names)
    yield _line(["---"] * len(names))
    yield from (_line(row) for row in rows)
    yield ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _link(path: str) -> str:
    return f"[{Path(path).name}](../{path})" if path else ""


def main() -> None:
    """Write the page where the command line says, or to standard output."""
    if len(sys.argv) == 1:
        print(coverage(Path("docs/benchmarks.tsv")), end="")
        return
    page = Path(sys.argv[1])
    page.write_text(coverage(page.with_name("benchmarks.tsv")), encoding="utf-8")


if __name__ == "__main__":
    main()
