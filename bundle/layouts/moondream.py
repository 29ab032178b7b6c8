"""The token that begins a prompt, then the image token once for every row; both see one another (Moondream 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from bundle.errors import PromptError
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt, Int64, LooksAhead, Span


class MoondreamPrompt(ImagePrompt):
    """As Moondream 2 is run: all before the question is one stretch, the token that begins prompts in it.

    Its template writes whole prompts of one message.
    """

    looks_ahead: ClassVar[LooksAhead] = "images"
    writes_whole_prompts: ClassVar[bool] = True
    takes_one_message: ClassVar[bool] = True

    kind: Literal["moondream"] = "moondream"

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image."""
        return self.image_token * self.num_tokens(layout)

    def check(self, layouts: Sequence[TileLayout]) -> None:
        """Check that there is one image at most: the model was trained on no more."""
        if len(layouts) > 1:
            raise PromptError(
                f"the messages hold {len(layouts)} images, frames of videos among them; the model answers one message "
                "about one image. Send one.",
                "messages",
            )

    def seen(self, token_ids: Int64, spans: Sequence[Span]) -> Int64 | None:
        """Return [2, T] the half-open stretch that each token sees: all up to an image's end, for those before it."""
        own = np.arange(len(token_ids), dtype=np.int64)
        seen = np.stack([own, own + 1])
        for span in spans:
            seen[:, : span.end] = [[0], [span.end]]
        return seen
