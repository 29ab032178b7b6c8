"""A language of visual tokens: what the tower shall say about a picture so that the frozen decoder understands it.

The 64 visual tokens of an image are an inventory in words: each place has a fixed role, and a table of vectors for its
role says what stands there. Row j of the 8 x 8 tokens is about shape j: how many there are, in which colour, its name,
and where. The last three columns hold the number of all shapes, that of each colour, a digit and the letters of a word.
A decoder this small copies what stands in its context, "one red star", but hardly works anything out.

The tables start from the decoder's own words and are learnt through the decoder alone, without a tower: a few hundred
vectors learn what to say in the time in which a tower learns to see. Then the tower learns to say it, from as many
pictures as one likes, without the decoder.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from reference.drawing import SHAPES
from reference.enquiries import NUMBERS
from reference.photographs import PHOTOGRAPHS
from reference.pictures import COLOURS, FIGURES, LETTERS, Item, Picture

GRID = 8
CELLS = GRID * GRID
MAX_COUNT = 6
MAX_LETTERS = 9
SEVERAL = "several"
_NUMBER = NUMBERS[: MAX_COUNT + 1]
ROLES: dict[str, tuple[str, ...]] = {
    "number": _NUMBER,
    "colour": ("", *COLOURS, SEVERAL),
    "name": ("", *SHAPES),
    "height": ("", "top", "middle", "bottom"),
    "side": ("", "left", "middle", "right"),
    "total": _NUMBER,
    "colour_number": _NUMBER,
    "digit": ("", *"0123456789"),
    "letter": ("", *LETTERS, *FIGURES),
    "spare": ("",),
}
"""What stands at a place of a role; "" is nothing."""
_SHAPE_ROLES = ("number", "colour", "name", "height", "side")
_OTHERS = ("total", *("colour_number",) * len(COLOURS), "digit", "colour", *("letter",) * MAX_LETTERS)
_FREE = [row * GRID + column for row in range(GRID) for column in range(len(_SHAPE_ROLES), GRID)]
_OTHER_CELLS = dict(zip(_FREE, _OTHERS, strict=False))
CELL_ROLES = tuple(
    _SHAPE_ROLES[cell % GRID] if cell % GRID < len(_SHAPE_ROLES) else _OTHER_CELLS.get(cell, "spare")
    for cell in range(CELLS)
)
_WORD_SHARE = 0.7  # of two words that share a token
_ROLE_CELLS = {role: [cell for cell, other in enumerate(CELL_ROLES) if other == role] for role in ROLES}


def inventory(shown: Picture | int) -> np.ndarray:
    """Return what stands at each place: [64] uint8, an index into the words of its role in `ROLES`.

    Args:
        shown: A picture. Of a photograph, an index into `PHOTOGRAPHS`, nothing is said here.
    """
    cells = np.zeros(CELLS, np.uint8)
    if not isinstance(shown, Picture):
        return cells
    shapes = shown.shapes
    for row, name in enumerate(SHAPES):
        same = [item for item in shapes if item.name == name]
        if same:
            cells[row * GRID : row * GRID + len(_SHAPE_ROLES)] = _row(name, same)
    counts = [len(shapes), *(sum(s.colour == colour for s in shapes) for colour in COLOURS)]
    cells[_FREE[: len(counts)]] = [min(MAX_COUNT, n) for n in counts]
    digit, text = shown.first("digit"), shown.first("text")
    after = len(counts)
    if digit is not None:
        cells[_FREE[after]] = ROLES["digit"].index(digit.name)
    written = digit or text
    if written is not None:
        cells[_FREE[after + 1]] = ROLES["colour"].index(written.colour)
    if text is not None:
        cells[_FREE[after + 2 : after + 2 + len(text.name)]] = [ROLES["letter"].index(c) for c in text.name]
    return cells


def _row(name: str, same: list[Item]) -> list[int]:
    """Return what is said about the shapes of one name."""
    colours = {item.colour for item in same}
    colour = colours.pop() if len(colours) == 1 else SEVERAL
    words = [_NUMBER[min(MAX_COUNT, len(same))], colour, name, "", ""]
    if len(same) == 1:
        words[3:] = thirds(same[0])
    return [ROLES[role].index(word) for role, word in zip(_SHAPE_ROLES, words, strict=True)]


def thirds(item: Item) -> tuple[str, str]:
    """Return the third of the height and of the width in which a thing stands."""
    across, down = item.centre
    return ("top", "middle", "bottom")[_third(down)], ("left", "middle", "right")[_third(across)]


def _third(share: float) -> int:
    return (share > 0.36) + (share > 0.64)


class Symbols(nn.Module):
    """The tables: from inventories to visual tokens."""

    def __init__(self, words: dict[str, torch.Tensor], blank: torch.Tensor) -> None:
        """Start from the decoder's words.

        Args:
            words: [D] float32 each: every word in `ROLES`.
            blank: [D] float32, where nothing is said.
        """
        super().__init__()
        known = {"": blank, **words}
        self.tables = nn.ParameterDict()
        for role, names in ROLES.items():
            table = torch.stack([known[name] for name in names])
            self.tables[role] = nn.Parameter(table.expand(len(_ROLE_CELLS[role]), -1, -1).clone())  # [places, words, D]
        with torch.no_grad():
            for row, name in enumerate(SHAPES):
                self.tables["name"][row, 0] = words[name]  # "no star"
            for place, colour in enumerate(COLOURS):
                self.tables["colour_number"][place] += words[colour]
                self.tables["colour_number"][place] *= _WORD_SHARE
                self.tables["colour_number"][place, 0] = blank
        self.photographs = nn.Parameter(torch.zeros(len(PHOTOGRAPHS), CELLS, len(blank)))

    def forward(self, cells: torch.Tensor, photograph: torch.Tensor) -> torch.Tensor:
        """Return visual tokens [I, 64, D].

        Args:
            cells: [I, 64] uint8 inventories.
            photograph: [I] int64, an index into `PHOTOGRAPHS`, or -1 for pictures.
        """
        tokens = self.photographs.new_zeros(len(cells), CELLS, self.photographs.shape[-1])
        for role, places in _ROLE_CELLS.items():
            said = self.tables[role][torch.arange(len(places), device=cells.device), cells[:, places].long()]
            tokens = tokens.index_copy(1, torch.tensor(places, device=cells.device), said)
        is_photograph = (photograph >= 0)[:, None, None]
        return torch.where(is_photograph, self.photographs[photograph.clamp(min=0)], tokens)
