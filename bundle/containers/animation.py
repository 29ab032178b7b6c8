"""The frames of an animated GIF or WebP, counted and timed before any is decoded."""

from __future__ import annotations

from dataclasses import dataclass

_BROWSERS_LEAST_MS = 10
_BROWSERS_DELAY_MS = 100
"""What browsers make of a delay of 10 ms or less, which files say that were made without any."""


@dataclass(frozen=True)
class Animation:
    """An animation that was not decoded.

    Attributes:
        format: Pillow's name of its format.
        width_px: Of the canvas.
        height_px: Of the canvas.
        data: A file of its frames alone: no metadata, no colour profile.
        delays_ms: How long each frame is shown, as browsers have it.
    """

    format: str
    width_px: int
    height_px: int
    data: bytes
    delays_ms: tuple[int, ...]


def shown_ms(delay_ms: int) -> int:
    """Return how long a frame is shown that has this delay in its file."""
    return delay_ms if delay_ms > _BROWSERS_LEAST_MS else _BROWSERS_DELAY_MS
