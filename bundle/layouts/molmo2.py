"""An image as one crop, then as a canvas, both row by row between a start and an end (Molmo 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from bundle.errors import PromptError
from bundle.fields import MOST_NAME_CHARACTERS, TokenId
from bundle.frames.groups import FrameGroups
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import Features, ImagePrompt, Int64, LooksAhead, Span
from bundle.layouts.video_tokens import VideoTokens


class Molmo2Prompt(ImagePrompt):
    """As Molmo 2 was trained: tokens of all images of a prompt, their starts and ends among them, see one another.

    Attributes:
        crop_start_token: Before the tokens of the whole image as one crop.
        start_token: Before those of the canvas.
        end_token: Behind either.
        line_end_token: Behind each row of the canvas.
        ends_lines: Rows of the canvas end with that token.
        ends_crop_lines: Those of the crop do.
        patch_px: Edge of a patch.
        pool: Height and width, in patches, of what becomes a token.
        crop_px: Edge of the crop.
        seen_ids: Of tokens that see one another: those of images and frames, their starts and ends, those of rows.
        frame_pool: As `pool`, of a frame, whose rows the encoder gives behind all those of a tile; None: it gives none.
        ends_frame_lines: Rows of a frame end with that token.
        video: Its token of videos; None: frames are images.
    """

    looks_ahead: ClassVar[LooksAhead] = "all images"

    kind: Literal["molmo2"] = "molmo2"
    crop_start_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    start_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    end_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    line_end_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    ends_lines: bool
    ends_crop_lines: bool
    patch_px: int = Field(gt=0, le=512)
    pool: tuple[int, int]
    crop_px: int = Field(gt=0, le=4096)
    seen_ids: tuple[TokenId, ...] = Field(max_length=16)
    frame_pool: tuple[int, int] | None = None
    ends_frame_lines: bool = False
    video: VideoTokens | None = None

    @property
    def rows_per_tile(self) -> int:
        """Rows of a crop, and of it as a frame."""
        return self.tokens_per_tile + self._num_rows(self._crop_px, self.frame_pool)

    @property
    def own_video(self) -> VideoTokens | None:
        """Tokens of the model's own for a whole video."""
        return self.video

    @property
    def frame_groups(self) -> FrameGroups | None:
        """A tile for each frame, where there are such tokens."""
        if self.video is None or self.frame_pool is None:
            return None
        return FrameGroups(self.video.num_frames, self.frame_pool[0] * self.patch_px)

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image with what stands around them; of fewer than all, in one row of the canvas.

        Of a video those of its frames, each behind the second at which it is.
        """
        if layout.video is not None and self.video is not None:
            grid = self._grid(self._crop_px, self.frame_pool)
            frame = self._between(self.video.start_token, grid, self.video.end_token, ends=self.ends_frame_lines)
            return " ".join(f"{time_s:.1f} {frame}" for time_s in layout.video.middles_s)
        if layout.fewer_tokens is not None:
            return self._between(self.start_token, (1, layout.fewer_tokens), self.end_token, ends=self.ends_lines)
        crop, canvas = self._grid(self._crop_px, self.pool), self._grid(layout.whole_px or self._crop_px, self.pool)
        whole = self._between(self.crop_start_token, crop, self.end_token, ends=self.ends_crop_lines)
        return f"{whole}{self._between(self.start_token, canvas, self.end_token, ends=self.ends_lines)}"

    def num_tokens(self, layout: TileLayout) -> int:
        """Return how many image tokens an image or a video takes in a prompt."""
        if layout.video is not None:
            return self._num_rows(self._crop_px, self.frame_pool) * len(layout.video.middles_s)
        if layout.fewer_tokens is not None:
            return layout.fewer_tokens
        return self.tokens_per_tile + self._num_rows(layout.whole_px or self._crop_px, self.pool)

    def arranged(self, features: Features, layout: TileLayout) -> Features:
        """Return an image's rows [..., D] without those of frames; of a frame those alone.

        Args:
            features: [tiles, rows_per_tile, D], or [rows, D] where the canvas has another size than the crop.
            layout: How it was cut.
        """
        if self.frame_pool is None:
            return features
        if layout.is_group:
            frames: Features = features[:, self.tokens_per_tile :]
            return frames
        if features.ndim > 2 or layout.whole_px is None:
            return np.asarray(features[:, : self.tokens_per_tile])
        canvas = self.rows_per_tile + self._num_rows(layout.whole_px, self.pool)
        return np.concatenate([features[: self.tokens_per_tile], features[self.rows_per_tile : canvas]])

    def check(self, layouts: Sequence[TileLayout]) -> None:
        """Check that a video is all that is shown, as the model was trained.

        Raises:
            PromptError: It is not.
        """
        if len(layouts) > 1 and any(layout.video is not None for layout in layouts):
            raise PromptError(
                f"the messages hold {len(layouts)} images and videos; the model takes one video and nothing beside it, "
                "or images. Send one video, or its frames as images.",
                "messages",
            )

    def seen(self, token_ids: Int64, spans: Sequence[Span]) -> Int64:
        """Return [2, T] the half-open stretch that each token sees, of which text is to be left out."""
        own = np.arange(len(token_ids), dtype=np.int64)
        seen = np.stack([own, own + 1])
        marks = np.isin(token_ids, self.seen_ids)
        if marks.any():
            places = np.flatnonzero(marks)
            seen[:, marks] = [[places[0]], [places[-1] + 1]]
        return seen

    def writes(self, token: str) -> bool:
        """Return whether a token is the layout's."""
        own = (self.crop_start_token, self.start_token, self.end_token, self.line_end_token)
        return super().writes(token) or token in own

    @property
    def _crop_px(self) -> tuple[int, int]:
        return self.crop_px, self.crop_px

    def _num_rows(self, size_px: tuple[int, int], pool: tuple[int, int] | None) -> int:
        rows, cols = self._grid(size_px, pool)
        return rows * cols

    def _grid(self, size_px: tuple[int, int], pool: tuple[int, int] | None) -> tuple[int, int]:
        """Return (rows, columns) of what a picture of so many pixels is pooled to; none without windows."""
        if pool is None:
            return 0, 0
        height, width = (-(-length // self.patch_px // side) for length, side in zip(size_px, pool, strict=True))
        return height, width

    def _between(self, start: str, grid: tuple[int, int], end: str, *, ends: bool) -> str:
        rows, cols = grid
        line = self.image_token * cols + (self.line_end_token if ends else "")
        return f"{start}{line * rows}{end}"
