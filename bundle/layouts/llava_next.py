"""The whole image first, then its tiles as one picture, without their padding, a learned row behind each line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from bundle.frames.groups import FrameGroups
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import Features, ImagePrompt
from bundle.layouts.video_tokens import VideoTokens


@dataclass(frozen=True)
class _Lines:
    """Which patches of all tiles together show the image, and to how many they are scaled.

    Attributes:
        top: First line that is no padding.
        left: First column that is none.
        height: Lines that are none.
        width: Columns that are none.
        num_lines: That the prompt has.
        num_cols: That a line has in the prompt, its end aside.
    """

    top: int
    left: int
    height: int
    width: int
    num_lines: int
    num_cols: int


class LlavaNextPrompt(ImagePrompt):
    """As LLaVA-NeXT was trained, and with `most_tiles` as LLaVA-OneVision was (arXiv 2408.03326, section 3.3).

    The encoder gives a tile's patches and behind them the learned row that ends a line. A frame is its patches alone;
    the one row behind all frames of a video, which OneVision was trained with, is left out.

    Attributes:
        most_tiles: Tiles of more patches than so many have are scaled down together; None: never.
        halves_frames: A frame's patches are scaled down to half as many a side.
        video: Its tokens of videos; None: frames are images.
        tokens_per_pooled: Rows that the encoder gives behind a tile's patches, those of a frame of a video; 0: none.
        pooled_px: Side of the square of pixels that each of these stands for.
    """

    places_images_in_strings: ClassVar[bool] = True

    kind: Literal["llava_next"] = "llava_next"
    most_tiles: int | None = Field(default=None, gt=0, le=1 << 12)
    halves_frames: bool = False
    video: VideoTokens | None = None
    tokens_per_pooled: int = Field(default=0, ge=0, le=1 << 16)
    pooled_px: int = Field(default=1, gt=0, le=4096)

    @property
    def rows_per_tile(self) -> int:
        """A tile's patches, those of a frame where there are some, and the row that ends a line."""
        return self.tokens_per_tile + self.tokens_per_pooled + 1

    @property
    def own_video(self) -> VideoTokens | None:
        """Tokens of the model's own for a whole video."""
        return self.video

    @property
    def frame_groups(self) -> FrameGroups | None:
        """A tile for each frame, where there are such tokens."""
        return None if self.video is None else FrameGroups(self.video.num_frames, self.pooled_px)

    @property
    def tokens_per_frame(self) -> int:
        """A tile's patches, or a quarter of them."""
        return self._frame_side**2

    @property
    def _frame_side(self) -> int:
        side = math.isqrt(self.tokens_per_tile)
        return -(-side // 2) if self.halves_frames else side

    def text(self, layout: TileLayout) -> str:
        """Return the tokens of an image, or of a video."""
        is_video = layout.video is not None and self.video is not None
        token = self.video.token if is_video and self.video is not None else self.image_token
        return token * self.num_tokens(layout)

    def num_tokens(self, layout: TileLayout) -> int:
        """Return how many tokens an image of that size takes, or a video."""
        if layout.video is not None:
            return self.tokens_per_pooled * len(layout.video.middles_s)
        if layout.fewer_tokens is not None or layout.image_px is None:
            return super().num_tokens(layout)
        if layout.rows == 0:
            return self.tokens_per_tile + 1
        lines = self._lines(layout, layout.image_px)
        return self.tokens_per_tile + lines.num_lines * (lines.num_cols + 1)

    def arranged(self, features: Features, layout: TileLayout) -> Features:
        """Return [num_tokens, D]: the whole image, then lines of all tiles; of a frame [1, P, D].

        Args:
            features: [tiles, rows_per_tile, D], the whole image last, the row that ends a line behind each tile.
            layout: How it was cut.
        """
        if layout.is_group:
            pooled: Features = features[:, self.tokens_per_tile : self.tokens_per_tile + self.tokens_per_pooled]
            return pooled
        if layout.image_px is None:
            return self._frames(features)
        if layout.rows == 0:
            return np.concatenate([features[0, : self.tokens_per_tile], features[0, -1:]])
        return self._picture(features, layout, layout.image_px)

    def _frames(self, features: Features) -> Features:
        """Return [frames, tokens_per_frame, D]."""
        patches, side, size = features[:, : self.tokens_per_tile], self._frame_side, features.shape[-1]
        if not self.halves_frames:
            return np.asarray(patches)
        whole = math.isqrt(self.tokens_per_tile)
        scaled = [_scaled(frame.reshape(whole, whole, size), side, side).reshape(-1, size) for frame in patches]
        return np.stack(scaled)

    def _picture(self, features: Features, layout: TileLayout, image_px: tuple[int, int]) -> Features:
        """Return the rows of an image in tiles."""
        side, size = math.isqrt(self.tokens_per_tile), features.shape[-1]
        patches = features[:-1, : self.tokens_per_tile].reshape(layout.rows, layout.cols, side, side, size)
        picture = patches.transpose(0, 2, 1, 3, 4).reshape(layout.rows * side, layout.cols * side, size)
        lines = self._lines(layout, image_px)
        shown = picture[lines.top : lines.top + lines.height, lines.left : lines.left + lines.width]
        scaled = _scaled(shown, lines.num_lines, lines.num_cols)
        ends = np.broadcast_to(features[-1, -1], (lines.num_lines, 1, size))
        ended: Features = np.concatenate([scaled, ends], axis=1).reshape(-1, size)
        return np.concatenate([features[-1, : self.tokens_per_tile], ended])

    def _lines(self, layout: TileLayout, image_px: tuple[int, int]) -> _Lines:
        side = math.isqrt(self.tokens_per_tile)
        height, width = layout.rows * side, layout.cols * side
        top = left = 0
        # floats in the order in which the model was trained: another rounds another way at whole numbers
        if image_px[1] / image_px[0] > width / height:
            top = (height - int(round(image_px[0] * (width / image_px[1]), 7))) // 2
        else:
            left = (width - int(round(image_px[1] * (height / image_px[0]), 7))) // 2
        height, width = height - 2 * top, width - 2 * left
        return _Lines(top, left, height, width, *self._scaled_size(height, width))

    def _scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (lines, columns) of a picture of so many patches."""
        if self.most_tiles is None:
            return height, width
        ratio = math.sqrt(height * width / (self.most_tiles * self.tokens_per_tile))
        return (int(height // ratio), int(width // ratio)) if ratio > _LEAST_RATIO else (height, width)


_LEAST_RATIO = 1.1
"""Of sides, below which a picture is not scaled (LLaVA-OneVision's own, for which its paper gives no reason)."""


def _scaled(picture: Features, height: int, width: int) -> Features:
    """Return [height, width, D] of a picture [rows, cols, D], bilinear among the nearest four, unsmoothed."""
    if picture.shape[:2] == (height, width):
        return picture
    first, second, share = _taps(picture.shape[0], height)
    lines = picture[first] * (1 - share)[:, None, None] + picture[second] * share[:, None, None]
    first, second, share = _taps(picture.shape[1], width)
    scaled = lines[:, first] * (1 - share)[:, None] + lines[:, second] * share[:, None]
    same_type: Features = scaled.astype(picture.dtype, copy=False)
    return same_type


def _taps(size: int, smaller: int) -> tuple[Features, Features, Features]:
    """Return [smaller] the two places between which each lies, and the share of the second."""
    at = np.maximum((np.arange(smaller) + 0.5) * (size / smaller) - 0.5, 0)
    first = at.astype(np.int64)
    return first, np.minimum(first + 1, size - 1), (at - first).astype(np.float32)
