"""No token for an image: a memory holds what an encoder made of it and of the question (Florence-2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from bundle.errors import PromptError
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt, Memory, Span


class Florence2Prompt(ImagePrompt):
    """As Florence-2 was trained: the prompt is how every answer begins, and all that is asked is in the memory.

    `tokens_per_tile` counts the rows of the image there; those of the question stand behind them.
    """

    fills_memory: ClassVar[bool] = True
    writes_whole_prompts: ClassVar[bool] = True
    takes_one_message: ClassVar[bool] = True

    kind: Literal["florence2"] = "florence2"

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
