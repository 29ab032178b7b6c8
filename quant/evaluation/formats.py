"""The formats of samples, each told by its columns, and what a row of each becomes (docs/evaluation.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bundle.errors import QuantizationError
from quant.evaluation import columns
from quant.evaluation.columns import one, texts_of
from quant.evaluation.pictures import picture_of
from quant.evaluation.rows import Place, Row
from quant.evaluation.sample import LETTERS, Example, Sample
from quant.evaluation.scorers.table import METRICS

UNNAMED_TASK = "questions"
_SHOWN = frozenset({"image", "frames", "video"})


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        wanted: Columns that every row has.
        one_of: Columns of which a row has one, besides; none where that is empty.
        optional: Columns that a row may have.
        make: The sample of a row.
        told: By which column it is known; the first format of the table whose column a row has, is its.
    """

    wanted: frozenset[str]
    one_of: frozenset[str]
    optional: frozenset[str]
    make: Callable[[Row, Place, Path], Sample]
    told: frozenset[str]

    @property
    def least(self) -> str:
        """The columns that a row has, as an error names them."""
        return ", ".join([*sorted(self.wanted), *filter(None, [" or ".join(sorted(self.one_of))])])

    @property
    def columns(self) -> str:
        """All of its columns, as an error names them."""
        return f"{self.least}; {', '.join(sorted(self.optional)) or 'nothing'} may be added"


def sample_of(row: Row, where: Place, folder: Path, allowed: Iterable[str] | None = None) -> Sample:
    """Return the sample of a row.

    Args:
        row: Of a file.
        where: The row, for errors.
        folder: Of its images.
        allowed: Formats that it may have; None: any.

    Raises:
        QuantizationError: It has columns that no format has, lacks some, or one holds what it cannot; each is named.
    """
    among = {name: FORMATS[name] for name in allowed or FORMATS}
    name = next((name for name, each in among.items() if each.told & row.keys()), None)
    found = ", ".join(sorted(row)) or "none"
    if name is None:
        ways = " | ".join(f"{name}: {each.least}" for name, each in among.items())
        raise QuantizationError(f"{where} has the columns {found}. Wanted for this model: {ways} (docs/evaluation.md)")
    wanted = among[name]
    lacking = sorted(wanted.wanted - row.keys())
    unknown = sorted(row.keys() - wanted.wanted - wanted.one_of - wanted.optional)
    given = wanted.one_of & row.keys()
    if lacking or unknown or (wanted.one_of and len(given) != 1):
        wrong = [f"unknown: {', '.join(unknown)}"] if unknown else []
        wrong += [f"lacking: {', '.join(lacking)}"] if lacking else []
        if wanted.one_of and len(given) != 1:
            wrong.append(f"{len(given)} of {', '.join(sorted(wanted.one_of))}, of which one is wanted")
        raise QuantizationError(
            f"{where} has the columns {found} ({'; '.join(wrong)}). Wanted of the format {name}: {wanted.columns}"
        )
    return wanted.make(row, where, folder)


def _vqa(row: Row, where: Place, folder: Path) -> Sample:
    answers = (one(row, "answer", where),) if "answer" in row else texts_of(row, "answers", where)
    return _asked("vqa", row, where, folder, _metric(row, "exact", where), answers)


def _ocr(row: Row, where: Place, folder: Path) -> Sample:
    return _asked("ocr", row, where, folder, _metric(row, "cer", where), (one(row, "text", where),))


def _choice(row: Row, where: Place, folder: Path) -> Sample:
    choices = texts_of(row, "choices", where)
    if not 2 <= len(choices) <= len(LETTERS) or len(set(choices)) != len(choices):
        raise QuantizationError(
            f"{where}: choices holds {len(choices)} texts, {len(set(choices))} of them different; "
            f"give 2 to {len(LETTERS)} that all differ"
        )
    right = columns.letters_of(row["answer"], choices, where)
    return _asked("choice", row, where, folder, _metric(row, "choice", where), right, choices)


def _asked(
    name: str,
    row: Row,
    where: Place,
    folder: Path,
    metric: str,
    answers: tuple[str, ...],
    choices: tuple[str, ...] = (),
) -> Sample:
    question = one(row, "question", where) if "question" in row else ""
    return Sample(
        where,
        name,
        _task(row, where),
        metric,
        columns.shown_of(row, where, folder),
        question,
        answers,
        choices,
        _examples(row, where, folder),
    )


def _caption(row: Row, where: Place, folder: Path) -> Sample:
    captions = (one(row, "caption", where),) if "caption" in row else texts_of(row, "captions", where)
    shown = columns.shown_of(row, where, folder)
    return Sample(where, "caption", _task(row, where), "cider", shown, answers=captions)


def _label(row: Row, where: Place, folder: Path) -> Sample:
    shown = columns.shown_of(row, where, folder)
    label = (one(row, "label", where),)
    return Sample(where, "label", _task(row, where), "exact", shown, answers=label)


def _search(row: Row, where: Place, folder: Path) -> Sample:
    graded = columns.relevant_of(row["relevant"], where, folder)
    shown = columns.shown_of(row, where, folder)
    return Sample(
        where,
        "search",
        _task(row, where),
        shown=shown,
        question=one(row, "query", where) if "query" in row else "",
        relevant={picture.name: grade for picture, grade in graded},
        documents=tuple(picture for picture, _ in graded),
    )


def _document(row: Row, where: Place, folder: Path) -> Sample:
    return Sample(where, "document", UNNAMED_TASK, documents=(picture_of(row["document"], folder, where),))


def _metric(row: Row, default: str, where: Place) -> str:
    name = one(row, "metric", where) if "metric" in row else default
    if name not in METRICS:
        raise QuantizationError(f"{where}: metric is {name!r}; there are {', '.join(METRICS)}")
    return name


def _task(row: Row, where: Place) -> str:
    return one(row, "task", where) if "task" in row else UNNAMED_TASK


def _examples(row: Row, where: Place, folder: Path) -> tuple[Example, ...]:
    given = row.get("examples", [])
    if not isinstance(given, list):
        raise QuantizationError(f"{where}: examples is {given!r:.40}, not a list of objects")
    return tuple(_example(each, where, folder) for each in given)


def _example(given: object, where: Place, folder: Path) -> Example:
    if not isinstance(given, Mapping) or not {"question", "answer"} <= given.keys() <= {*_SHOWN, "question", "answer"}:
        raise QuantizationError(
            f"{where}: an example is {given!r:.60}; write an object of question, answer, and image, frames or video"
        )
    texts = (one(given, name, where) for name in ("question", "answer"))
    return Example(columns.shown_of(given, where, folder), *texts)


_ASKED = frozenset({"task", "metric", "examples"})
SEARCHED = frozenset({"search", "document"})
"""Formats of one file, whose questions are answered by vectors alone."""
FORMATS: dict[str, Format] = {
    "choice": Format(
        frozenset({"question", "choices", "answer"}), frozenset(), _ASKED | _SHOWN, _choice, frozenset({"choices"})
    ),
    "vqa": Format(
        frozenset({"question"}),
        frozenset({"answer", "answers"}),
        _ASKED | _SHOWN,
        _vqa,
        frozenset({"answer", "answers"}),
    ),
    "ocr": Format(frozenset({"text"}), frozenset(), _ASKED | _SHOWN | {"question"}, _ocr, frozenset({"text"})),
    "caption": Format(
        frozenset(), frozenset({"caption", "captions"}), _SHOWN | {"task"}, _caption, frozenset({"caption", "captions"})
    ),
    "label": Format(frozenset({"label"}), frozenset(), _SHOWN | {"task"}, _label, frozenset({"label"})),
    "search": Format(
        frozenset({"relevant"}), frozenset({"query", "image"}), frozenset({"task"}), _search, frozenset({"relevant"})
    ),
    "document": Format(frozenset({"document"}), frozenset(), frozenset(), _document, frozenset({"document"})),
}
"""Name -> format, the more particular first."""
