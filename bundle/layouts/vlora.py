"""No token for an image: its weights stand in a memory that layers add to their own (VLoRA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from bundle.image.layout import TileLayout
from bundle.layouts.memory_room import check_memory_room
from bundle.layouts.prompt import ImagePrompt, Memory, Span


class VLoRAPrompt(ImagePrompt):
    """As VLoRA reads a conversation: without its image (arXiv 2405.20339).

    Every token of it, those before the image among them, runs through weights that all images changed. The paper has
    one image; where there are several, what each changes is added, as of several adapters.

    Attributes:
        rank: Of the change of one image, and rows that the encoder gives of it.
        most_images: In one conversation, for which the memory has room.
    """

    places_images_in_strings: ClassVar[bool] = True
    fills_memory: ClassVar[bool] = True

    kind: Literal["vlora"] = "vlora"
    rank: int = Field(gt=0, le=1 << 12)
    most_images: int = Field(gt=0, le=1024)

    @property
    def rows_per_tile(self) -> int:
        """Rows that the encoder gives of an image."""
        return self.rank

    @property
    def tokens_per_frame(self) -> int:
        """Return 0, as of any image."""
        return 0

    def text(self, layout: TileLayout) -> str:
        """Return nothing."""
        return ""

    def num_tokens(self, layout: TileLayout) -> int:
        """Return 0: an image takes no place in a prompt."""
        return 0

    def check(self, layouts: Sequence[TileLayout]) -> None:
        """Check that the memory has room for all images."""
        check_memory_room(len(layouts), self.most_images)

    def memory(self, num_tokens: int, spans: Sequence[Span], layouts: Sequence[TileLayout]) -> Memory | None:
        """Return the weights of all images, which every token runs through."""
        if not layouts:
            return None
        seen = np.tile(np.array([0, len(layouts) * self.rank, 1], np.int64), (num_tokens, 1))
        return Memory(tuple((image, 0, self.rank) for image in range(len(layouts))), seen)
