"""Rows of patches that all end, the token that begins the text, and one image at most (Fuyu)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from bundle.errors import PromptError
from bundle.fields import MOST_NAME_CHARACTERS
from bundle.image.layout import TileLayout
from bundle.layouts.pixtral import PixtralPrompt


class FuyuPrompt(PixtralPrompt):
    """As Fuyu was trained (Adept, "Fuyu-8B", 2023): one image before one text; `end_token` is `break_token`.

    Attributes:
        text_token: Between the image and the text.
    """

    writes_whole_prompts: ClassVar[bool] = True
    takes_one_message: ClassVar[bool] = True

    kind: Literal["fuyu"] = "fuyu"  # type: ignore[assignment]
    text_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image, with those that end its rows and the one before the text."""
        return super().text(layout) + self.text_token

    def check(self, layouts: Sequence[TileLayout]) -> None:
        """Check that there is one image at most: the processor knows no place for a second one."""
        if len(layouts) > 1:
            raise PromptError(
                f"the messages hold {len(layouts)} images, frames of videos among them; the model answers one message "
                "about one image. Send one.",
                "messages",
            )
        super().check(layouts)

    def writes(self, token: str) -> bool:
        """Return whether a token is the layout's, the one before the text among them."""
        return super().writes(token) or token == self.text_token
