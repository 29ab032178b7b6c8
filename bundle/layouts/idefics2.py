"""As many tokens for an image and for each of its quarters, between fake tokens of which neighbours share one."""

from __future__ import annotations

import re
from typing import Literal

from bundle.image.layout import TileLayout
from bundle.layouts.prompt import Features, ImagePrompt


class Idefics2Prompt(ImagePrompt):
    """As Idefics2 was trained (arXiv 2405.02246, section 3.3).

    Attributes:
        fake_token: The text before and after each image.
    """

    kind: Literal["idefics2"] = "idefics2"

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image, with what stands around them and those of its quarters."""
        if layout.fewer_tokens is not None:
            return self._between(layout.fewer_tokens)
        return self._between(self.tokens_per_tile) * layout.num_tiles

    def tidied(self, text: str) -> str:
        """Return a text in which neighbours share a fake token, and a blank stands before a word behind one."""
        fake = self.fake_token
        once = text.replace(f"{fake}{fake}", fake)
        return re.sub(rf"{re.escape(fake)}(?=[^\s<])", f"{fake} ", once)

    def arranged(self, features: Features, layout: TileLayout) -> Features:
        """Return [num_tokens, D]: tokens are no patches, and quarters may have had other sizes than the whole."""
        rows: Features = features.reshape(-1, features.shape[-1])
        return rows

    def _between(self, num_tokens: int) -> str:
        return f"{self.fake_token}{self.image_token * num_tokens}{self.fake_token}"
