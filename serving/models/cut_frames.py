"""Encoded bytes of a video to the 8-bit pictures that are encoded of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from bundle.errors import ContextLengthError, MachineError
from bundle.frames.opening import open_clip
from bundle.frames.options import FrameOptions
from bundle.frames.plan import FramePlan, Picture
from bundle.frames.sampling import chosen_frames
from bundle.frames.table import check_options, plan_of
from bundle.image import ImageSpec
from serving.models.cut_image import CutImage, pixel_digest


@dataclass(frozen=True)
class FrameRoom:
    """What a model has for a video.

    Attributes:
        tokens_per_image: Of a frame.
        context_tokens: Of the whole conversation: as many as leave no more than a context once they are reduced.
        is_reduced: They will be.
    """

    tokens_per_image: int
    context_tokens: int
    is_reduced: bool = False


@dataclass(frozen=True)
class CutFrames:
    """A video's chosen frames, as the pictures of their layout.

    Attributes:
        times_s: When each frame is shown.
        duration_s: Of the video.
        pictures: One tile each, in the plan's order.
    """

    times_s: tuple[float, ...]
    duration_s: float
    pictures: tuple[CutImage, ...]

    def plan(self, options: FrameOptions, room: FrameRoom) -> FramePlan:
        """Return how the frames are laid out.

        Raises:
            MachineError: These are not the pictures of that plan, as a child that a video took over might send.
        """
        plan = plan_of(len(self.times_s), options, room.tokens_per_image, room.context_tokens)
        if len(plan.pictures) != len(self.pictures) or len(self.times_s) > options.most_frames:
            raise MachineError(f"{len(self.pictures)} pictures came of {len(self.times_s)} frames, which want others")
        return plan


def cut_frames(spec: ImageSpec, files: Sequence[bytes], options: FrameOptions, room: FrameRoom) -> CutFrames:
    """Return the pictures of a video; the number of their tokens is judged before a frame is decoded.

    Args:
        spec: How an image is cut; a frame is never in tiles.
        files: One file, or a picture for each frame.
        options: Which frames, and their layout.
        room: For them.

    Raises:
        RequestError: The files are no video, one over the limits, or one whose frames do not fit the model.
        MachineError: This machine lacks memory, or what decodes such a file.
    """
    check_options(options)
    clip = open_clip(files, options.list_fps)
    chosen = chosen_frames(clip.times_s, clip.duration_s, options)
    plan = plan_of(len(chosen), options, room.tokens_per_image, room.context_tokens)
    if plan.num_tokens > room.context_tokens:
        limit = f"{room.context_tokens}{' of which a part is read' if room.is_reduced else ''}"
        raise ContextLengthError(
            f"the video's {len(chosen)} frames take {plan.num_tokens} tokens in the layout {options.layout}; the "
            f"context holds {limit}. Ask for fewer by num_frames, or for another layout.",
            "messages",
        )
    drawing = _Drawing(spec.for_frames, plan)
    pictures = clip.pictures(chosen)
    for frame in range(len(chosen)):
        drawing.add(frame, next(pictures))  # held by nothing else: one frame at a time
    times_s = tuple(clip.times_s[index] for index in chosen)
    return CutFrames(times_s, clip.duration_s, tuple(map(drawing.picture, plan.pictures)))


class _Drawing:
    """Frames as the plan's pictures want them, held small: a frame's tile, and its cell of each grid.

    Args:
        spec: Of a frame.
        plan: Of all.
    """

    def __init__(self, spec: ImageSpec, plan: FramePlan) -> None:
        self._spec = spec
        self._plan = plan
        self._digests: dict[int, bytes] = {}
        self._sizes: dict[int, tuple[int, int]] = {}
        self._tiles: dict[int, Image.Image] = {}
        self._cells: dict[tuple[int, int, int], Image.Image] = {}

    def add(self, frame: int, image: Image.Image) -> None:
        """Take a decoded frame."""
        self._digests[frame], self._sizes[frame] = pixel_digest(image), image.size
        for picture in self._plan.pictures:
            if frame not in picture.frames:
                continue
            if len(picture.frames) == 1:
                (self._tiles[frame],) = self._spec.cut(image)
            else:
                self._cells[picture.rows, picture.cols, frame] = self._spec.cell(image, picture.rows, picture.cols)

    def picture(self, picture: Picture) -> CutImage:
        """Return a picture whose frames were all taken."""
        first = picture.frames[0]
        if len(picture.frames) == 1:
            return CutImage(self._digests[first], *self._sizes[first], (self._tiles[first],), is_cut=True)
        tile = self._spec.grid(
            [self._cells[picture.rows, picture.cols, frame] for frame in picture.frames], picture.cols
        )
        told = f"grid {picture.rows}x{picture.cols}".encode()
        digest = hashlib.sha256(told + b"".join(self._digests[frame] for frame in picture.frames)).digest()
        return CutImage(digest, *tile.size, (tile,), is_cut=True)
