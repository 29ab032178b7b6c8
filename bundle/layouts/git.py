"""The image token once for every row of features, before all text; rows stand nowhere, the text begins at 0 (GIT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from bundle.errors import PromptError
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt, LooksAhead, Places, Span


class GitPrompt(ImagePrompt):
    """As GIT was trained: rows of an image see one another, text sees them and what was said (arXiv 2205.14100, 3.1).

    Places are counted along the text alone; the decoder knows rows of an image by their place, which is -1.
    """

    looks_ahead: ClassVar[LooksAhead] = "images"
    writes_whole_prompts: ClassVar[bool] = True
    takes_one_message: ClassVar[bool] = True
    begins_answers: ClassVar[bool] = True

    kind: Literal["git"] = "git"

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image."""
        return self.image_token * self.num_tokens(layout)

    def check(self, layouts: Sequence[TileLayout]) -> None:
        """Check that there is one image at most: frames of videos were told apart by rows that are not built."""
        if len(layouts) > 1:
            raise PromptError(
                f"the messages hold {len(layouts)} images, frames of videos among them; the model answers one message "
                "about one image. Send one.",
                "messages",
            )

    def places(self, num_tokens: int, spans: Sequence[Span], layouts: Sequence[TileLayout]) -> Places:
        """Return -1 for tokens of an image, and 0, 1, 2, ... for the others."""
        is_text = np.ones(num_tokens, np.int64)
        for span in spans:
            is_text[span.start : span.end] = 0
        places = np.where(is_text, np.cumsum(is_text) - 1, -1)
        return Places(places.astype(np.int64), int(is_text.sum()))
