"""An animated GIF or WebP as a video: each frame as it stands on the canvas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import accumulate

from PIL import Image

from bundle.containers.animation import Animation
from bundle.decode import DEFAULT_LIMITS, ImageLimits, decoding
from bundle.errors import ImageError
from bundle.frames.clip import Clip
from bundle.frames.limits import VideoLimits, check_video
from bundle.rgb import held_bytes, to_rgb

_MS = 1000


class AnimatedFrames(Clip):
    """The frames of an animation.

    Args:
        animation: Counted and timed.
        limits: Of the whole.
        frame_limits: Of what decoding one frame may hold.

    Raises:
        ImageError: It is over the limits.
    """

    def __init__(self, animation: Animation, limits: VideoLimits, frame_limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self._animation = animation
        self._frame_limits = frame_limits
        ends_s = [end / _MS for end in accumulate(animation.delays_ms)]
        width, height, num_frames = animation.width_px, animation.height_px, len(ends_s)
        check_video(width, height, num_frames, ends_s[-1], limits)
        if width * height * num_frames > limits.max_animation_pixels:
            raise ImageError(
                f"the {animation.format} holds {num_frames} frames of {width}x{height} pixels; at most "
                f"{limits.max_animation_pixels} pixels are decoded of all together. Scale it down, or cut it."
            )
        self.times_s = (0.0, *ends_s[:-1])
        self.duration_s = ends_s[-1]

    def decoded(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """Yield frames; each is made of all before it."""
        animation = self._animation
        what = f"the {animation.format} of {animation.width_px}x{animation.height_px} pixels"
        num_pixels = animation.width_px * animation.height_px
        with decoding(what, len(animation.data), num_pixels):
            file = Image.open(BytesIO(animation.data), formats=(animation.format,))
        self._check_held(file)
        for index in indices:
            with decoding(f"frame {index} of {what}", len(animation.data), num_pixels):
                file.seek(index)
                file.load()
                frame = to_rgb(file.copy())
            yield frame
            del frame

    def _check_held(self, file: Image.Image) -> None:
        num_bytes = held_bytes(file, 1)
        if num_bytes > self._frame_limits.max_decoded_bytes:
            raise ImageError(
                f"a frame of {file.width}x{file.height} pixels takes {num_bytes >> 20} MiB to decode; "
                f"{self._frame_limits.max_decoded_bytes >> 20} are allowed. Scale it down."
            )
