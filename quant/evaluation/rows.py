"""Rows of a file of samples, each with its place: JSON Lines, a JSON list, or a table with a header."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.errors import QuantizationError

Row = Mapping[str, Any]
LISTS = frozenset({"choices", "answers", "captions", "image", "frames"})
"""Columns whose cell in a table may hold a JSON list."""
_SHOWN_CHARACTERS = 40
_LONGEST_CELL = 64 << 20
"""Characters; a table may hold images in base64."""


@dataclass(frozen=True)
class Place:
    """Where a file says something, for errors.

    Attributes:
        path: Of the file.
        number: From 1 on.
        unit: What is counted: lines, or the entries of a JSON document.
    """

    path: Path
    number: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}"


def read_text(path: Path) -> str:
    """Return what a file holds.

    Raises:
        QuantizationError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise QuantizationError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise QuantizationError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def lines_of(path: Path) -> Iterator[tuple[Place, Row]]:
    """Yield the objects of a JSON Lines file, blank lines left out.

    Raises:
        QuantizationError: It cannot be read, or a line is no JSON object; with its number.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, start=1):
                where = Place(path, number)
                if text.strip():
                    yield where, _object(parsed(text, str(where)), where)
    except OSError as error:
        raise QuantizationError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise QuantizationError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def entries_of(path: Path, values: list[Any]) -> Iterator[tuple[Place, Row]]:
    """Yield the objects of a JSON list.

    Raises:
        QuantizationError: One is no object; with its number.
    """
    for number, value in enumerate(values, start=1):
        where = Place(path, number, "entry")
        yield where, _object(value, where)


def table_of(path: Path) -> Iterator[tuple[Place, Row]]:
    """Yield the rows of a table with a header, CSV or TSV by the file's name; empty cells are absent.

    Raises:
        QuantizationError: It cannot be read, has no header, or a row has more cells than that.
    """
    text = read_text(path)
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
    try:
        for cells in reader:
            where = Place(path, reader.line_num)
            if None in cells:
                raise QuantizationError(f"{where} has more cells than the header, which names {len(cells) - 1}")
            yield where, {name: _cell(name, cell, where) for name, cell in cells.items() if cell}
    except csv.Error as error:
        raise QuantizationError(f"{path}, line {reader.line_num} is no row of a table: {error}") from error


def parsed(text: str, where: str) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The JSON.
        where: What it is, for errors.

    Raises:
        QuantizationError: It is no JSON, or one that cannot be read.
    """
    try:
        return json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        raise QuantizationError(f"{where} is not JSON: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise QuantizationError(f"{where} cannot be read as JSON: {error}") from error


def _object(value: Any, where: Place) -> Row:
    if not isinstance(value, dict):
        raise QuantizationError(f"{where} is no JSON object but {json.dumps(value)[:_SHOWN_CHARACTERS]!r}")
    return value


def _cell(name: str, cell: str, where: Place) -> Any:
    return parsed(cell, f"{where}: {name}") if name in LISTS and cell.startswith("[") else cell
