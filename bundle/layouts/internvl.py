"""All tokens of an image, its tiles one after another, between a start and an end (InternVL 2.5 and later; NVLM)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from bundle.fields import MOST_NAME_CHARACTERS
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt, Places, Span

_WHOLE = "<tile_global_thumbnail>"


class InternVLPrompt(ImagePrompt):
    """As InternVL was trained.

    Attributes:
        start_token: The text before an image's tokens.
        end_token: The text behind them.
        has_tags: Words before each tile say which one it is (NVLM, arXiv 2409.11402, section 4.2: 1-D flattened tile
            tags), and before the whole image that it is that.
        tile_positions: How far a tile's tokens are together; what stands behind an image stands at the next whole
            position (V2PE, arXiv 2412.09616, section 3.2, and the authors' code). None: each is one.
    """

    kind: Literal["internvl"] = "internvl"
    start_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    end_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    has_tags: bool = False
    tile_positions: int | None = Field(default=None, gt=0, le=1 << 16)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image, with what stands around them."""
        return f"{self.start_token}{self._tokens(layout)}{self.end_token}"

    def _tokens(self, layout: TileLayout) -> str:
        if not self.has_tags or layout.fewer_tokens is not None:
            return self.image_token * self.num_tokens(layout)
        tile = self.image_token * self.tokens_per_tile
        tags = [f"<tile_{number}>" for number in range(1, layout.num_tiles)]
        return "".join(tag + tile for tag in [*tags, _WHOLE])

    def writes(self, token: str) -> bool:
        """Return whether a token is the layout's."""
        return super().writes(token) or token in (self.start_token, self.end_token)

    def places(self, num_tokens: int, spans: Sequence[Span], layouts: Sequence[TileLayout]) -> Places:
        """Return 0, 1, 2, ...; or [2, T] whole positions, and these plus parts of a position, P of them in each."""
        if self.tile_positions is None:
            return super().places(num_tokens, spans, layouts)
        positions, start, position = np.empty((2, num_tokens), np.int64), 0, 0
        for span in spans:
            positions[:, start : span.start] = np.arange(position, position + span.start - start)
            last, parts = position + span.start - start - 1, self.tokens_per_tile
            steps = np.arange(1, span.end - span.start + 1) * self.tile_positions
            whole = last + steps // parts
            positions[:, span.start : span.end] = np.stack([whole, whole + steps % parts])
            start, position = span.end, last - (-int(steps[-1]) // parts) + 1
        positions[:, start:] = np.arange(position, position + num_tokens - start)
        return Places(positions, position + num_tokens - start)
