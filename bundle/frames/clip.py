"""Encoded videos of strangers: opened, counted, timed; and then single frames of them decoded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from PIL import Image

from bundle.errors import ImageError


class Clip(ABC):
    """A video within the limits, of which no frame is decoded yet.

    Attributes:
        times_s: When each frame is shown, ascending from 0.
        duration_s: Of the whole.
    """

    times_s: tuple[float, ...]
    duration_s: float

    @abstractmethod
    def decoded(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """Yield frames, upright and RGB; `indices` ascend.

        Raises:
            ImageError: A frame is damaged, or has another size than the file says.
            OutOfMemoryError: This machine lacks memory for it.
        """

    def pictures(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """Yield frames as `decoded`, all of one size.

        Raises:
            ImageError: As `decoded`; or two frames differ in size.
        """
        size: tuple[int, int] | None = None
        decoded = self.decoded(indices)
        for index in indices:
            picture = next(decoded)
            size = size or picture.size
            if picture.size != size:
                raise ImageError(
                    f"frame {index} is {picture.width}x{picture.height} pixels, the frames before it "
                    f"{size[0]}x{size[1]}; the frames of a video have one size. Scale them, or send them as images."
                )
            yield picture
            del picture  # else it would be held, 200 MB of it, while the next is decoded
