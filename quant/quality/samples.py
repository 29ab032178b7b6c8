"""A user's own samples from a JSONL file: what to measure a variant on, or to fit its weights to.

One JSON object per line; images are paths relative to the file, and are opened when they are used.

    {"image": "cat.jpg", "question": "What is this?", "answer": "a cat", "task": "name"}    vision-language models
    {"image": ["a.png", "b.png"], "question": "Which is larger?", "answer": "the first"}    several images, no task
    {"image": "cat.jpg", "caption": "a cat on a mat"}                                       dual encoders: recall
    {"image": "cat.jpg", "label": "cat"}                                                    dual encoders: zero-shot
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bundle.decode import decode_image
from bundle.errors import ImageError, QuantizationError
from bundle.manifest import Manifest
from bundle.zero_shot import label_text
from quant.quality.evaluation import Evaluation, Labelled

UNNAMED_TASK = "questions"
LABELS = "label"
"""The zero-shot task of a file's labels."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """A line of a file of samples, for errors."""

    path: Path
    number: int

    def __str__(self) -> str:
        return f"{self.path}, line {self.number}"


@dataclass(frozen=True)
class ImageFile:
    """An image on disk.

    Attributes:
        path: Of the image.
        where: The line that names it.
    """

    path: Path
    where: Place

    def open(self) -> Image.Image:
        """Return the image, upright and RGB.

        Raises:
            QuantizationError: It cannot be read, or is no image.
        """
        try:
            return decode_image(self.path.read_bytes())
        except OSError as error:
            raise QuantizationError(f"{self.where}: {self.path} cannot be read: {error.strerror}") from error
        except ValueError as error:  # a path with a zero byte in it
            raise QuantizationError(f"{self.where}: {str(self.path)!r} is no path: {error}") from error
        except ImageError as error:
            raise QuantizationError(f"{self.where}: {self.path}: {error}") from error


@dataclass(frozen=True)
class FileQuestion:
    """A question of a file; its images are opened each time they are asked for.

    Attributes:
        task: Under which its accuracy is reported.
        files: Its images, in order.
        question: The text behind them.
        answer: The right answer.
    """

    task: str
    files: tuple[ImageFile, ...]
    question: str
    answer: str

    @property
    def images(self) -> Sequence[Image.Image]:
        """Return the images, opened now."""
        return [file.open() for file in self.files]

    def messages(self) -> Sequence[Mapping[str, object]]:
        """Return one turn: the images, then the question."""
        images: list[dict[str, str]] = [{"type": "image"} for _ in self.files]
        return [{"role": "user", "content": [*images, {"type": "text", "text": self.question}]}]

    def is_right(self, reply: str) -> bool:
        """Say whether a reply is the answer, apart from case, runs of spaces, and a period at the end."""
        return _normal(reply) == _normal(self.answer)


@dataclass(frozen=True)
class FileCaption:
    """A captioned image of a file, opened each time it is asked for.

    Attributes:
        file: The image.
        caption: What is true of it.
    """

    file: ImageFile
    caption: str

    @property
    def image(self) -> Image.Image:
        """Return the image, opened now."""
        return self.file.open()


def read_samples(path: Path, manifest: Manifest) -> Evaluation:
    """Return the samples of a JSONL file, of the kind that a model's task wants.

    Every image is decoded once here, so that a damaged one is told before hours of work, and none is kept.

    Args:
        path: The file.
        manifest: Of the bundle to be measured; a label becomes a text by its prompt template, as in /v1/classify.

    Raises:
        QuantizationError: No such file, no lines, or a line that is no sample; with its number.
    """
    rows = list(_rows(path))
    if not rows:
        raise QuantizationError(f"{path} holds no samples; write one JSON object per line")
    if manifest.dual is None:
        return Evaluation(questions=[_question(row, where) for where, row in rows], source=path.name)
    return _encoder_samples(path, rows, manifest.dual.prompt_template)


def _rows(path: Path) -> Iterator[tuple[Place, Row]]:
    """Yield the objects of a file, blank lines left out."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, start=1):
                where = Place(path, number)
                if text.strip():
                    yield where, _parsed(text, where)
    except OSError as error:
        raise QuantizationError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise QuantizationError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _parsed(text: str, where: Place) -> Row:
    try:
        row = json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        raise QuantizationError(f"{where} is not JSON: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise QuantizationError(f"{where} cannot be read as JSON: {error}") from error
    if not isinstance(row, dict):
        raise QuantizationError(f"{where} is no JSON object but {text.strip()[:40]!r}")
    return row


def _question(row: Row, where: Place) -> FileQuestion:
    _require_columns(row, {"image", "question", "answer"}, {"task"}, where)
    images = row["image"] if isinstance(row["image"], list) else [row["image"]]
    texts = {name: _text(row, name, where) for name in ("question", "answer")}
    task = _text(row, "task", where) if "task" in row else UNNAMED_TASK
    return FileQuestion(task, tuple(_image(name, where) for name in images), texts["question"], texts["answer"])


def _encoder_samples(path: Path, rows: Sequence[tuple[Place, Row]], template: str) -> Evaluation:
    captions, labelled = [], []
    for where, row in rows:
        _require_columns(row, {"image"}, {"caption", "label"}, where)
        if len(row) == 1:
            raise QuantizationError(f"{where} has an image and nothing to find it by; add a caption or a label")
        file = _image(row["image"], where)
        if "caption" in row:
            captions.append(FileCaption(file, _text(row, "caption", where)))
        if "label" in row:
            labelled.append(FileCaption(file, label_text(template, _text(row, "label", where))))
    candidates = sorted({sample.caption for sample in labelled})
    if len(candidates) == 1:
        raise QuantizationError(
            f"{path}: every label makes {candidates[0]!r}; zero-shot needs two or more to choose from"
        )
    tasks = {LABELS: Labelled(candidates, labelled)} if labelled else {}
    return Evaluation(captions=captions, labelled=tasks, source=path.name)


def _require_columns(row: Row, wanted: set[str], optional: set[str], where: Place) -> None:
    if wanted <= row.keys() <= wanted | optional:
        return
    found = ", ".join(sorted(row)) or "none"
    allowed = f"{', '.join(sorted(wanted))}; {', '.join(sorted(optional))} may be added"
    raise QuantizationError(f"{where} has the columns {found}. Wanted for this model: {allowed}")


def _text(row: Row, name: str, where: Place) -> str:
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise QuantizationError(f"{where}: {name} is {value!r}, not a text")
    return value


def _image(name: object, where: Place) -> ImageFile:
    if not isinstance(name, str) or not name:
        raise QuantizationError(f"{where}: image is {name!r}, not a path or a list of paths")
    file = ImageFile(where.path.parent / name, where)
    file.open()
    return file


def _normal(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").rstrip().casefold()
