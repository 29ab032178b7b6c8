"""What one column of a row may hold, and what it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bundle.errors import QuantizationError
from quant.evaluation.pictures import ImageFile, Picture, picture_of
from quant.evaluation.rows import Place, Row
from quant.evaluation.sample import LETTERS, Shown


def one(row: Row, name: str, where: Place) -> str:
    """Return the text of a column.

    Raises:
        QuantizationError: It is none, or empty.
    """
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise QuantizationError(f"{where}: {name} is {value!r:.60}, not a text")
    return value


def texts_of(row: Row, name: str, where: Place) -> tuple[str, ...]:
    """Return the texts of a column.

    Raises:
        QuantizationError: It is no list of texts, or an empty one.
    """
    value = row[name]
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each.strip() for each in value):
        raise QuantizationError(f"{where}: {name} is {value!r:.60}, not a list of texts")
    return tuple(value)


def shown_of(row: Row, where: Place, folder: Path) -> Shown:
    """Return what a row shows; `image` holds one image or a list of them.

    Raises:
        QuantizationError: An image or a video is not there, or a row shows frames and a video.
    """
    if "frames" in row and "video" in row:
        raise QuantizationError(f"{where} has frames and a video; give one of them")
    images = row.get("image", [])
    listed = images if isinstance(images, list) else [images]
    frames = row.get("frames", [])
    if not isinstance(frames, list):
        raise QuantizationError(f"{where}: frames is {frames!r:.60}, not a list of images")
    video = ImageFile(folder / one(row, "video", where), where) if "video" in row else None
    if video:
        video.check()
    return Shown(_pictures(listed, where, folder), _pictures(frames, where, folder), video)


def letters_of(answer: object, choices: Sequence[str], where: Place) -> tuple[str, ...]:
    """Return the letters of the right choices: of letters, texts of choices, or their places from 0 on.

    A letter that is the text of another choice is read as the text.

    Raises:
        QuantizationError: One is no choice, or there is none.
    """
    given = answer if isinstance(answer, list) else [answer]
    if not given:
        raise QuantizationError(f"{where}: answer is an empty list; name at least one choice")
    return tuple(sorted({_letter(each, choices, where) for each in given}))


def _letter(answer: object, choices: Sequence[str], where: Place) -> str:
    letters = LETTERS[: len(choices)]
    if isinstance(answer, str) and answer in choices:
        return letters[choices.index(answer)]
    if isinstance(answer, str) and len(answer) == 1 and answer.upper() in letters:
        return answer.upper()
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return letters[answer]
    raise QuantizationError(
        f"{where}: answer is {answer!r:.60}, none of the {len(choices)} choices; give its letter, its text, or its "
        "place from 0 on"
    )


def relevant_of(given: object, where: Place, folder: Path) -> list[tuple[Picture, float]]:
    """Return documents and grades: of a list of images, or an object of images and grades.

    Raises:
        QuantizationError: It is neither, no grade is above 0, or a document is not there.
    """
    grades = dict.fromkeys(given, 1.0) if isinstance(given, list) and _are_texts(given) else given
    if not isinstance(grades, Mapping) or not all(_is_grade(grade) for grade in grades.values()):
        raise QuantizationError(
            f"{where}: relevant is {given!r:.60}; give a list of documents, or an object of documents and grades from 0"
        )
    if not any(grade > 0 for grade in grades.values()):
        raise QuantizationError(f"{where}: nothing is relevant to the query; give one document a grade above 0")
    return [(picture_of(name, folder, where), float(grade)) for name, grade in grades.items()]


def _pictures(names: Sequence[object], where: Place, folder: Path) -> tuple[Picture, ...]:
    return tuple(picture_of(name, folder, where) for name in names)


def _are_texts(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_grade(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
