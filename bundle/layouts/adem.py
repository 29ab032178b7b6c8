"""One token for an image, and beside it a memory that every layer fuses into every token (ADEM-VL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from bundle.image.layout import TileLayout
from bundle.layouts.memory_room import check_memory_room
from bundle.layouts.prompt import ImagePrompt, Memory, Span

_MOST_IMAGES = 1
"""The authors' code and both learned embeddings of rows are of one image."""


class AdemPrompt(ImagePrompt):
    """As ADEM-VL was trained (arXiv 2410.17779): what the tower's class token became stands in the prompt.

    The encoder gives that row first; all others, of every scale, go into the memory, which all tokens of a
    conversation see, those before the image among them.

    Attributes:
        memory_rows: Of an image.
    """

    fills_memory: ClassVar[bool] = True

    kind: Literal["adem"] = "adem"
    memory_rows: int = Field(gt=0, le=1 << 16)

    @property
    def rows_per_tile(self) -> int:
        """Rows that the encoder gives of an image."""
        return 1 + self.memory_rows

    def text(self, layout: TileLayout) -> str:
        """Return the token of an image."""
        return self.image_token

    def num_tokens(self, layout: TileLayout) -> int:
        """Return 1."""
        return 1

    def check(self, layouts: Sequence[TileLayout]) -> None:
        """Check that there is one image at most."""
        check_memory_room(len(layouts), _MOST_IMAGES)

    def memory(self, num_tokens: int, spans: Sequence[Span], layouts: Sequence[TileLayout]) -> Memory | None:
        """Return the image's rows behind the first, which every token sees."""
        if not layouts:
            return None
        seen = np.tile(np.array([0, self.memory_rows, 1], np.int64), (num_tokens, 1))
        return Memory(((0, 1, 1 + self.memory_rows),), seen, leaves_spans=True)
