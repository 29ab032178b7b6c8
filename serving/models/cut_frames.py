"""Encoded bytes of a video to the 8-bit pictures that are encoded of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from PIL import Image

from bundle.errors import ContextLengthError, MachineError
from bundle.frames.groups import FrameGroups
from bundle.frames.opening import open_clip
from bundle.frames.options import UNIFORM, FrameOptions
from bundle.frames.plan import FramePlan, Picture
from bundle.frames.sampling import chosen_frames
from bundle.frames.table import check_options, plan_of
from bundle.image import ImageSpec, TileLayout
from serving.models.cut_image import CutImage, pixel_digest


@dataclass(frozen=True)
class FrameRoom:
    """What a model has for a video.

    Attributes:
        tokens_per_image: Of a frame.
        context_tokens: Of the whole conversation: as many as leave no more than a context once they are reduced.
        is_reduced: They will be.
        groups: How frames become tokens of videos, where the model has such; None: they are images.
    """

    tokens_per_image: int
    context_tokens: int
    is_reduced: bool = False
    groups: FrameGroups | None = None

    @classmethod
    def read(cls, told: dict[str, Any]) -> FrameRoom:
        """Return what another process wrote as `dataclasses.asdict` does."""
        groups = told["groups"]
        return cls(**{**told, "groups": None if groups is None else FrameGroups(**groups)})

    def groups_in(self, options: FrameOptions) -> FrameGroups | None:
        """Return how frames become tokens of videos; None: they are images, as in all layouts but the first."""
        return self.groups if options.layout == UNIFORM else None


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

    @property
    def frame_px(self) -> tuple[int, int]:
        """(height, width) of a frame as it is encoded, where frames become tokens of videos."""
        width, height = self.pictures[0].images[0].size
        return height, width

    def layout(self, options: FrameOptions, room: FrameRoom) -> TileLayout | None:
        """Return how the whole video stands in a prompt; None: its frames are images."""
        groups = room.groups_in(options)
        return None if groups is None else groups.layout(self.times_s, self.duration_s, self.frame_px)

    def plan(self, options: FrameOptions, room: FrameRoom) -> FramePlan:
        """Return how the frames are laid out.

        Raises:
            MachineError: These are not the pictures of that plan, as a child that a video took over might send.
        """
        groups = room.groups_in(options)
        if groups is None:
            plan = plan_of(len(self.times_s), options, room.tokens_per_image, room.context_tokens)
        else:
            plan = groups.plan(len(self.times_s), self.frame_px)
        if len(plan.pictures) != len(self.pictures) or len(self.times_s) > options.most_frames:
            raise MachineError(f"{len(self.pictures)} pictures came of {len(self.times_s)} frames, which want others")
        return plan


def cut_frames(spec: ImageSpec, files: Sequence[bytes], options: FrameOptions, room: FrameRoom) -> CutFrames:
    """Return the pictures of a video; the number of their tokens is judged before a frame is decoded, or
    once the first is, where it depends on their size.

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
    decoded, groups = clip.pictures(chosen), room.groups_in(options)
    if groups is None:
        frames = spec.for_frames
        plan = plan_of(len(chosen), options, room.tokens_per_image, room.context_tokens)
        _check_room(plan, len(chosen), options, room)
    else:
        first = next(decoded)  # tells the size of all
        frames = spec.of_video(len(chosen), *first.size) or spec.for_frames
        plan = groups.plan(len(chosen), frames.tile_size_px)
        _check_room(plan, len(chosen), options, room)
        decoded = chain((first,), decoded)
        del first
    drawing = _Drawing(frames, plan)
    for frame in range(len(chosen)):
        drawing.add(frame, next(decoded))  # held by nothing else: one frame at a time
    times_s = tuple(clip.times_s[index] for index in chosen)
    return CutFrames(times_s, clip.duration_s, tuple(map(drawing.picture, plan.pictures)))


def _check_room(plan: FramePlan, num_frames: int, options: FrameOptions, room: FrameRoom) -> None:
    if plan.num_tokens > room.context_tokens:
        limit = f"{room.context_tokens}{' of which a part is read' if room.is_reduced else ''}"
        raise ContextLengthError(
            f"the video's {num_frames} frames take {plan.num_tokens} tokens in the layout {options.layout}; the "
            f"context holds {limit}. Ask for fewer by num_frames, or for another layout.",
            "messages",
        )


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
            if len(picture.frames) == 1 or picture.is_group:
                (self._tiles[frame],) = self._spec.cut(image)
            else:
                self._cells[picture.rows, picture.cols, frame] = self._spec.cell(image, picture.rows, picture.cols)

    def picture(self, picture: Picture) -> CutImage:
        """Return a picture whose frames were all taken."""
        first = picture.frames[0]
        if len(picture.frames) == 1:
            return CutImage(self._digests[first], *self._sizes[first], (self._tiles[first],), is_cut=True)
        if picture.is_group:
            digest = self._digest("group", picture)
            return CutImage(
                digest, *self._sizes[first], tuple(self._tiles[each] for each in picture.frames), is_cut=True
            )
        tile = self._spec.grid(
            [self._cells[picture.rows, picture.cols, frame] for frame in picture.frames], picture.cols
        )
        return CutImage(self._digest(f"grid {picture.rows}x{picture.cols}", picture), *tile.size, (tile,), is_cut=True)

    def _digest(self, what: str, picture: Picture) -> bytes:
        told = b"".join(self._digests[frame] for frame in picture.frames)
        return hashlib.sha256(what.encode() + told).digest()
