"""No token for an image: a memory holds all that was made of it, and a prompt is how the answer begins (Donut)."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from bundle.errors import PromptError
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt, Memory, Span


class WholeMemoryPrompt(ImagePrompt, ABC):
    """As encoders with decoders were trained: the prompt is how an answer begins, and the image is in the memory.

    `tokens_per_tile` counts the rows of the image there; those of a question stand behind them, where there is one.
    """

    fills_memory: ClassVar[bool] = True
    writes_whole_prompts: ClassVar[bool] = True
    takes_one_message: ClassVar[bool] = True
    wants_image: ClassVar[bool] = True

    def text(self, layout: TileLayout) -> str:
        """Return nothing: the decoder reads no image."""
        return ""

    def num_tokens(self, layout: TileLayout) -> int:
        """Return 0: features take no place in a prompt."""
        return 0

    def check(self, layouts: Sequence[TileLayout]) -> None:
        """Check that there is one image: without it the decoder has nothing to look at."""
        if len(layouts) != 1:
            raise PromptError(
                f"the messages hold {len(layouts)} images, frames of videos among them; the model answers one message "
                "about one image. Send exactly one.",
                "messages",
            )

    def memory(self, num_tokens: int, spans: Sequence[Span], layouts: Sequence[TileLayout]) -> Memory | None:
        """Return all rows that the encoder gives, however many a question makes of them."""
        return Memory((), np.zeros((num_tokens, 3), np.int64), holds_all=True)


class EncodedPrompt(WholeMemoryPrompt):
    """Of a tower before a decoder (TrOCR, Donut): the memory is what the tower made of the image."""

    begins_answers: ClassVar[bool] = True

    kind: Literal["encoded"] = "encoded"
