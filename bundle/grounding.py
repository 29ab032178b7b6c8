"""Where in an image lies what an answer names: the marks of boxes in its text, read as boxes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from bundle.field_marks import read_fields, without_marks
from bundle.fields import MOST_NAME_CHARACTERS, Frozen

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom, as shares of an image's width and height."""
_MARK = re.compile(
    r"</?(?:phrase|object|grounding|doc|line|chunk|image)>|</delimiter_of_multi_objects/>|<patch_index_\d+>"
)
_PAIR = r"\s*<patch_index_\d+>\s*<patch_index_\d+>\s*"
_OBJECT = re.compile(
    rf"(?:<phrase>([^<]+)</phrase>)?<object>({_PAIR}(?:</delimiter_of_multi_objects/>{_PAIR})*)</object>"
)
_PLACE = re.compile(r"<patch_index_(\d+)>")
_MOST_DIGITS = 9
"""Of a place that any model has."""


@dataclass(frozen=True)
class GroundedPoint:
    """A point that an answer says.

    Attributes:
        number: Of the thing, from 1; one that is followed through a video keeps its own.
        at: Which image of the prompt, from 1; of a video the second.
        x: As a share of the image's width, from the left.
        y: As a share of its height, from the top.
    """

    number: int
    at: float
    x: float
    y: float


@dataclass(frozen=True)
class GroundedObject:
    """What a part of an answer names.

    Attributes:
        text: That part; None where the boxes have no words.
        start: Of the part, in characters of `Grounded.text`.
        end: Behind it.
        boxes: Where it lies, one or several; none of models that say points.
        polygons: The outline in each box, where one was said: x, y, x, y, ... as shares of width and height.
        points: Where it lies, of models that say points.
    """

    text: str | None
    start: int
    end: int
    boxes: tuple[Box, ...]
    polygons: tuple[tuple[float, ...], ...] = ()
    points: tuple[GroundedPoint, ...] = ()


@dataclass(frozen=True)
class Grounded:
    """An answer without its marks.

    Attributes:
        text: What is said.
        objects: In the order of the text.
        fields: Of a document, as JSON; None of models that say none.
    """

    text: str
    objects: tuple[GroundedObject, ...]
    fields: Any = None


def _number(digits: str) -> int:
    """Return what digits say, at most what is beyond every model's places: Python refuses to read thousands of them."""
    return int(digits) if len(digits) <= _MOST_DIGITS else 10**_MOST_DIGITS


class PatchGrounding(Frozen):
    """Boxes by the patches at their corners, behind the phrase that they belong to (KOSMOS-2, arXiv 2306.14824, 2).

    Attributes:
        side: Patches along width and along height.
    """

    kind: Literal["patches"] = "patches"
    side: int = Field(gt=0, le=1 << 10)

    def read(self, text: str, asked: str = "") -> Grounded:
        """Return what an answer says and where that lies, whatever was asked; marks that make no box are dropped."""
        said = _MARK.sub("", text)
        blanks = len(said) - len(said.lstrip())
        return Grounded(said.strip(), tuple(self._objects(text, blanks)))

    def _objects(self, text: str, blanks: int) -> Iterator[GroundedObject]:
        num_said = end = 0
        for found in _OBJECT.finditer(text):
            phrase, places = found.groups()
            num_said, end = num_said + len(_MARK.sub("", text[end : found.start()])), found.start()
            start = num_said - blanks
            words = None if phrase is None else phrase.strip()
            start += 0 if phrase is None else len(phrase) - len(phrase.lstrip())
            corners = [_number(each) for each in _PLACE.findall(places)]
            pairs = list(zip(corners[::2], corners[1::2], strict=True))
            boxes = tuple(self._box(*pair) for pair in pairs if max(pair) < self.side**2)
            if boxes:
                yield GroundedObject(words, max(start, 0), max(start, 0) + len(words or ""), boxes)

    def _box(self, first: int, last: int) -> Box:
        """Return the box from the centre of one patch to the centre of another; whole patches where it is a line."""
        (top, left), (bottom, right) = divmod(first, self.side), divmod(last, self.side)
        before, behind = (0.0, 1.0) if left == right or top == bottom else (0.5, 0.5)
        corners = (left + before, top + before, right + behind, bottom + behind)
        x1, y1, x2, y2 = (corner / self.side for corner in corners)
        return x1, y1, x2, y2


_MARKS = re.compile(r"(?:<loc_\d+>|<sep>|</?poly>)+")
_LOCATIONS = re.compile(r"(?:<loc_\d+>)+")
_LOCATION = re.compile(r"<loc_(\d+)>")
_ANY_MARK = re.compile(r"<loc_\d+>|<sep>|</?poly>")
_BETWEEN = ", "
"""Stands between what an answer names one after the other, where nothing but marks did."""


class LocationGrounding(Frozen):
    """Boxes and outlines by bins of width and height, behind what they belong to (Florence-2, arXiv 2311.06242, 3.1).

    How many numbers make a shape is not in an answer: what was asked says it.

    Attributes:
        bins: Along each side; a number stands for the middle of one.
        quads: Parts of questions that are answered by four corners each.
        outlines: Parts of questions that are answered by outlines; answers with `<poly>` hold some whatever was asked.
    """

    kind: Literal["locations"] = "locations"
    bins: int = Field(gt=0, le=1 << 16)
    quads: tuple[str, ...] = Field(default=(), max_length=1 << 10)
    outlines: tuple[str, ...] = Field(default=(), max_length=1 << 10)

    def read(self, text: str, asked: str = "") -> Grounded:
        """Return what an answer to a question says and where that lies; numbers that make no shape are dropped."""
        if not _ANY_MARK.search(text):
            return Grounded(text, ())
        said, objects = list[str](), list[GroundedObject]()
        start = end = 0
        for found in _MARKS.finditer(text):
            words, end = text[end : found.start()].strip(), found.end()
            shapes = self._shapes(found[0], asked, has_outlines="<poly>" in text)
            if shapes:
                objects.append(_shaped(words, start, shapes))
            if words:
                said.append(words)
                start += len(words) + len(_BETWEEN)
        rest = _ANY_MARK.sub("", text[end:]).strip()
        return Grounded(_BETWEEN.join([*said, *([rest] if rest else [])]), tuple(objects))

    def _shapes(self, marks: str, asked: str, *, has_outlines: bool) -> list[tuple[float, ...]]:
        """Return boxes of four numbers, or outlines of more."""
        runs = [[_number(each) for each in _LOCATION.findall(run)] for run in _LOCATIONS.findall(marks)]
        if has_outlines or any(part in asked for part in self.outlines):
            cut = [run[: len(run) // 2 * 2] for run in runs]
        else:
            size = 8 if any(part in asked for part in self.quads) else 4
            cut = [run[at : at + size] for run in runs for at in range(0, len(run) - size + 1, size)]
        kept = [numbers for numbers in cut if len(numbers) >= 4 and max(numbers) < self.bins]
        return [tuple((number + 0.5) / self.bins for number in numbers) for numbers in kept]


def _shaped(words: str, start: int, shapes: list[tuple[float, ...]]) -> GroundedObject:
    """Return what some words name: boxes as they are, outlines with the boxes around them."""
    boxes = tuple(_around(shape) for shape in shapes)
    outlines = tuple(shapes) if any(len(shape) > 4 for shape in shapes) else ()
    return GroundedObject(words or None, start, start + len(words), boxes, outlines)


def _around(shape: tuple[float, ...]) -> Box:
    if len(shape) == 4:
        x1, y1, x2, y2 = shape
        return x1, y1, x2, y2
    return min(shape[::2]), min(shape[1::2]), max(shape[::2]), max(shape[1::2])


class FieldGrounding(Frozen):
    """Fields of a document by marks around them (Donut).

    Attributes:
        values: Tokens of the form `<yes/>` that are values of fields.
        question: What a question without marks is written as, `{question}` in its place; empty where it is not.
    """

    kind: Literal["fields"] = "fields"
    values: tuple[Annotated[str, Field(max_length=MOST_NAME_CHARACTERS)], ...] = Field(default=(), max_length=1 << 12)
    question: str = Field(default="", max_length=MOST_NAME_CHARACTERS)

    def read(self, text: str, asked: str = "") -> Grounded:
        """Return what an answer says, and the fields of prompt and answer together, behind the task."""
        return Grounded(without_marks(text), (), read_fields(f"{self._begun(asked)}{text}", frozenset(self.values)))

    def _begun(self, asked: str) -> str:
        """Return what of a prompt belongs to fields: all behind its first mark, which is the task."""
        if not asked.strip():
            return ""
        prompt = asked if "<s_" in asked else self.question.replace("{question}", asked)
        return prompt.partition(">")[2]


_POINTS = re.compile(r"<(points|tracks)\s([^<>]*?)(?:/>|>([^<>]*)</\1>)")
_COORDS = re.compile(r'coords="([^"]*)"')
_POINT_GROUP = re.compile(r"[^\t:;,]+")
_NUMBERS_OF_POINT = 3


class PointGrounding(Frozen):
    """Points in tags around what they belong to, of each image or second: its number, then number, x, y of each point.

    As Molmo 2 says them: `<points coords="1 1 073 160 2 173 600;2 1 258 725">boats</points>`.

    Attributes:
        scale: Of x and y, what the whole width or height is.
    """

    kind: Literal["points"] = "points"
    scale: int = Field(gt=0, le=1 << 16)

    def read(self, text: str, asked: str = "") -> Grounded:
        """Return what an answer says and where that lies; numbers that make no point are dropped."""
        said, objects, end = "", list[GroundedObject](), 0
        for found in _POINTS.finditer(text):
            if (coords := _COORDS.search(found[2])) is None:
                continue
            said += text[end : found.start()]
            words, start, end = (found[3] or "").strip(), len(said), found.end()
            said += words
            if points := tuple(self._points(coords[1])):
                objects.append(GroundedObject(words or None, start, len(said), (), points=points))
        return Grounded(f"{said}{text[end:]}", tuple(objects))

    def _points(self, coords: str) -> Iterator[GroundedPoint]:
        for group in _POINT_GROUP.findall(coords):
            try:
                at, *numbers = (float(each) for each in group.split())
            except ValueError:
                continue
            for first in range(0, len(numbers) - _NUMBERS_OF_POINT + 1, _NUMBERS_OF_POINT):
                number, x, y = numbers[first : first + _NUMBERS_OF_POINT]
                if not all(map(math.isfinite, (at, number, x, y))):
                    continue  # "nan" and "inf" are numbers to Python, and none to JSON
                if min(x, y) >= 0 and max(x, y) <= self.scale and number.is_integer():
                    yield GroundedPoint(int(number), at, x / self.scale, y / self.scale)


KnownGrounding: TypeAlias = Annotated[
    PatchGrounding | LocationGrounding | FieldGrounding | PointGrounding, Field(discriminator="kind")
]
