"""A language of visual tokens: what the tower shall say about a picture so that the frozen decoder understands it.

A picture is a grid of 8 x 8 cells, one visual token each. What a cell shows is looked up in tables of vectors, as words
are, and added up. The tables start from the decoder's own words and are learnt through the decoder alone, without a
tower: a few hundred vectors learn what to say in the time in which a tower learns to see. Then the tower learns to
say it, from as many pictures as one likes, without the decoder.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from reference.drawing import SHAPES
from reference.enquiries import NUMBERS
from reference.pictures import COLOURS, FIGURES, LETTERS, Item, Picture, letter_middles
from reference.real.photographs import PHOTOGRAPHS

GRID = 8
CELLS = GRID * GRID
KINDS = ("", *SHAPES, *LETTERS, *FIGURES, *(f"digit {d}" for d in range(10)))
COLOUR_NAMES = ("", *COLOURS)
SIZES = ("", "small", "large")
COUNTED = ("shapes", *COLOURS, *SHAPES)
MAX_COUNT = 6
PLANES = ("first_kind", "first_colour", "size", "second_kind", "second_colour", "count", "photograph")
"""Of `labels`: a shape or digit takes two cells side by side, first and second; a letter one; counts have cells of
their own, where `count` is 1 + the number; `photograph` is 1 + its index, in each cell."""
_COUNT_CELLS = tuple(range(len(COUNTED) - len(SHAPES))) + tuple(range(CELLS - len(SHAPES), CELLS))
_THINGS = (len(KINDS), len(COLOUR_NAMES))
CLASSES = (*_THINGS, len(SIZES), *_THINGS, MAX_COUNT + 2, len(PHOTOGRAPHS) + 1)
_FIRST_SHAPE_SHARE = 0.3  # of a shape's word in the first cell, where its colour's word is
_COUNT_SHARE = 0.5


def labels(shown: Picture | int) -> np.ndarray:
    """Return what each cell of a picture, or of a photograph by its index, says: [7, 8, 8] uint8, see `PLANES`."""
    planes = np.zeros((len(PLANES), GRID, GRID), np.uint8)
    if isinstance(shown, Picture):
        _label_picture(planes, shown)
    else:
        planes[6] = 1 + shown
    return planes


def _label_picture(planes: np.ndarray, picture: Picture) -> None:
    for item in picture.items:
        row = min(GRID - 1, int(GRID * item.centre[1]))
        colour = COLOUR_NAMES.index(item.colour)
        if item.kind == "text":
            for letter, middle in zip(item.name, letter_middles(item), strict=True):
                column = min(GRID - 1, max(0, int(GRID * middle)))
                planes[:2, row, column] = KINDS.index(letter), colour
            continue
        column = min(GRID - 2, max(0, int(GRID * item.centre[0] - 0.5)))
        kind = KINDS.index(f"digit {item.name}" if item.kind == "digit" else item.name)
        planes[:3, row, column] = kind, colour, SIZES.index(item.size)
        planes[3:5, row, column + 1] = kind, colour
    planes[5].reshape(-1)[list(_COUNT_CELLS)] = [1 + min(MAX_COUNT, n) for n in _counts(picture.shapes)]


def _counts(shapes: list[Item]) -> list[int]:
    colours = [sum(s.colour == colour for s in shapes) for colour in COLOURS]
    return [len(shapes), *colours, *(sum(s.name == name for s in shapes) for name in SHAPES)]


class Symbols(nn.Module):
    """The tables: from what cells show to visual tokens."""

    def __init__(self, words: dict[str, torch.Tensor], blank: torch.Tensor) -> None:
        """Start from the decoder's words.

        Args:
            words: [D] float32 each: every name in `COLOURS`, `SHAPES`, `LETTERS`, digits "0" to "9", and `NUMBERS`.
            blank: [D] float32, where nothing is shown.
        """
        super().__init__()
        width = len(blank)
        zero = torch.zeros(width)
        kinds = torch.stack([zero, *(words[k.removeprefix("digit ")] for k in KINDS[1:])])
        colours = torch.stack([zero, *(words[c] for c in COLOUR_NAMES[1:])])
        is_letter = torch.tensor([k != "" and k in LETTERS + FIGURES for k in KINDS])[:, None]
        self.first_kind = nn.Parameter(torch.where(is_letter, kinds, _FIRST_SHAPE_SHARE * kinds))
        self.first_colour = nn.Parameter(colours.clone())
        self.size = nn.Parameter(torch.zeros(len(SIZES), width))
        self.second_kind = nn.Parameter(kinds.clone())
        self.second_colour = nn.Parameter(_FIRST_SHAPE_SHARE * colours)
        numbers = torch.stack([words[n] for n in NUMBERS[: MAX_COUNT + 1]])
        named = torch.stack([words[c] for c in COUNTED])
        self.counts = nn.Parameter(_COUNT_SHARE * (numbers + named[:, None]))  # [counted, number, D]
        self.blank = nn.Parameter(blank.clone())
        self.cells = nn.Parameter(torch.zeros(CELLS, width))
        self.row = nn.Parameter(torch.zeros(GRID, width))
        self.column = nn.Parameter(torch.zeros(GRID, width))
        self.photographs = nn.Parameter(torch.zeros(len(PHOTOGRAPHS), CELLS, width))

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """Return visual tokens [I, 64, D] of labels [I, 7, 8, 8] uint8."""
        first_kind, first_colour, size, second_kind, second_colour, count, photograph = (
            planes.long().flatten(2).unbind(1)
        )
        is_blank = ((first_kind == 0) & (second_kind == 0)).unsqueeze(-1)
        is_first = (first_kind > 0).unsqueeze(-1)
        across = torch.arange(CELLS) % GRID
        tokens = self.cells + torch.where(is_blank, self.blank, 0.0)
        for table, index in (
            (self.first_kind, first_kind), (self.first_colour, first_colour), (self.size, size),
            (self.second_kind, second_kind), (self.second_colour, second_colour),
        ):  # fmt: skip
            tokens = tokens + functional.embedding(index, torch.cat([torch.zeros_like(table[:1]), table[1:]]))
        place = self.row[torch.arange(CELLS) // GRID] + self.column[across]
        tokens = tokens + torch.where(is_first, place, 0.0)
        counted = self.counts[torch.arange(len(COUNTED)), (count[:, _COUNT_CELLS] - 1).clamp(min=0)]
        tokens = tokens.index_add(1, torch.tensor(_COUNT_CELLS), counted)
        is_photograph = (photograph > 0).unsqueeze(-1)
        return torch.where(is_photograph, self.photographs[(photograph[:, 0] - 1).clamp(min=0)], tokens)
