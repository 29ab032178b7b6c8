"""A list of pictures as a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image

from bundle.decode import decode_image, inspect_image
from bundle.errors import ImageError
from bundle.frames.clip import Clip


class ListedFrames(Clip):
    """Encoded pictures, one for each frame, each judged by its head.

    Args:
        files: In order.
        fps: How many of them make a second.

    Raises:
        ImageError: There is none, one is no picture or over the limits, or their sizes differ.
    """

    def __init__(self, files: Sequence[bytes], fps: float) -> None:
        if not files:
            raise ImageError("the list of frames is empty; send at least one frame")
        self._files = tuple(files)
        for index, file in enumerate(files):
            try:
                inspect_image(file)
            except ImageError as error:
                raise ImageError(f"frame {index}: {error.message}") from error
        self.times_s = tuple(index / fps for index in range(len(files)))
        self.duration_s = len(files) / fps

    def decoded(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """Yield the pictures."""
        for index in indices:
            yield decode_image(self._files[index])
