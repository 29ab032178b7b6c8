"""Where in an image lies what an answer names: the marks of boxes in its text, read as boxes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import Field

from bundle.fields import Frozen

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


@dataclass(frozen=True)
class GroundedObject:
    """What a part of an answer names.

    Attributes:
        text: That part; None where the boxes have no words.
        start: Of the part, in characters of `Grounded.text`.
        end: Behind it.
        boxes: Where it lies, one or several.
    """

    text: str | None
    start: int
    end: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Grounded:
    """An answer without its marks.

    Attributes:
        text: What is said.
        objects: In the order of the text.
    """

    text: str
    objects: tuple[GroundedObject, ...]


class PatchGrounding(Frozen):
    """Boxes by the patches at their corners, behind the phrase that they belong to (KOSMOS-2, arXiv 2306.14824, 2).

    Attributes:
        side: Patches along width and along height.
    """

    kind: Literal["patches"] = "patches"
    side: int = Field(gt=0, le=1 << 10)

    def read(self, text: str) -> Grounded:
        """Return what an answer says and where that lies; marks that make no box are dropped."""
        said = _MARK.sub("", text)
        blanks = len(said) - len(said.lstrip())
        return Grounded(said.strip(), tuple(self._objects(text, blanks)))

    def _objects(self, text: str, blanks: int) -> Iterator[GroundedObject]:
        for found in _OBJECT.finditer(text):
            phrase, places = found.groups()
            start = len(_MARK.sub("", text[: found.start()])) - blanks
            words = None if phrase is None else phrase.strip()
            start += 0 if phrase is None else len(phrase) - len(phrase.lstrip())
            corners = [int(each) for each in _PLACE.findall(places)]
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


KnownGrounding: TypeAlias = PatchGrounding
