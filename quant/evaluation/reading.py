"""A file of samples, whole: its format or public layout found out, its rows read, and what it holds checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle.errors import QuantizationError
from quant.evaluation.formats import SEARCHED, sample_of
from quant.evaluation.layouts import Beside, document_rows, table_rows
from quant.evaluation.rows import Place, Row, lines_of, read_text
from quant.evaluation.sample import Sample

_TOGETHER = (SEARCHED,)
"""Formats that one file may mix."""


@dataclass(frozen=True)
class SampleFile:
    """What a file holds.

    Attributes:
        path: Of the file.
        samples: At least one, all of one format, or of formats that go together.
        num_rows: In the file, where fewer were taken.
        labels: Of all rows of the file, of which a label is one.
    """

    path: Path
    samples: tuple[Sample, ...]
    num_rows: int
    labels: tuple[str, ...] = ()

    @property
    def format(self) -> str:
        """The format of its samples; of formats that go together, the one that asks."""
        return next((each.format for each in self.samples if each.format != "document"), "document")

    def digest(self) -> str:
        """Return the SHA-256 of the file as it is now."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def read_file(path: Path, beside: Beside | None = None, limit: int | None = None) -> SampleFile:
    """Return the samples of a file.

    Args:
        path: JSON Lines, a table (.csv, .tsv, .token), or a JSON document.
        beside: What a public layout keeps in other places.
        limit: Most samples, evenly spread over the file; documents that are searched all stay. None: all.

    Raises:
        QuantizationError: It cannot be read, is empty, mixes formats, or a row is no sample; with its number.
    """
    rows = list(rows_of(path, beside or Beside()))
    if not rows:
        raise QuantizationError(f"{path} holds no samples; write one JSON object per line")
    taken = _spread(rows, limit)
    folder = (beside.images if beside else None) or path.parent
    samples = [sample_of(row, where, folder) for where, row in taken]
    check_one_format(samples)
    if samples[0].format == "document" and all(each.format == "document" for each in samples):
        raise QuantizationError(f"{path} holds documents and nothing that is searched for; add rows of query, relevant")
    labels = sorted({str(row["label"]) for _, row in rows if "label" in row})
    return SampleFile(path, tuple(samples), len(rows), tuple(labels))


def rows_of(path: Path, beside: Beside) -> Iterator[tuple[Place, Row]]:
    """Yield the rows of a file as the formats know them, whatever layout it has.

    Raises:
        QuantizationError: It cannot be read, or is of no layout that is known.
    """
    if path.suffix in (".csv", ".tsv", ".token"):
        return table_rows(path)
    if path.suffix == ".json":
        return document_rows(path, read_text(path), beside)
    return lines_of(path)


def _spread(rows: Sequence[tuple[Place, Row]], limit: int | None) -> list[tuple[Place, Row]]:
    """Return rows evenly spread, at most so many that are asked, and all documents."""
    asked = [place for place, (_, row) in enumerate(rows) if "document" not in row]
    if limit is None or limit >= len(asked):
        return list(rows)
    kept = {asked[at * len(asked) // limit] for at in range(limit)}
    return [row for place, row in enumerate(rows) if place in kept or "document" in row[1]]


def check_one_format(samples: Sequence[Sample]) -> None:
    """Check that samples are of one format, or of formats that go together.

    Raises:
        QuantizationError: They are not; both rows are named.
    """
    first = samples[0]
    for each in samples:
        if each.format != first.format and {each.format, first.format} not in _TOGETHER:
            raise QuantizationError(
                f"{each.place} is of the format {each.format}, and {first.place} of {first.format}; a file holds one"
            )
