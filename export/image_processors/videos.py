"""Processors of videos in Qwen's models: how large frames are, and how many of them become one tile."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from bundle.errors import UnsupportedConfigError
from bundle.image import Area, ImageSpec
from bundle.image.frame_area import FrameArea
from export.config import Raw

_GROUPED, _PATCH, _MERGED = "temporal_patch_size", "patch_size", "merge_size"


@dataclass(frozen=True)
class VideoSettings:
    """What a class of transformers does where the settings are silent.

    Attributes:
        least_px: Of `size`: of a frame; of all, where `of_all`.
        most_px: Of `size`, likewise.
        of_all: `size` bounds the area of all frames together.
    """

    least_px: int
    most_px: int
    of_all: bool = False

    def frames(self, settings: Raw, images: ImageSpec, source: str) -> FrameArea:
        """Return how frames are scaled and grouped.

        Args:
            settings: Of the processor.
            images: Preprocessing of images, whose patches and colours frames share.
            source: Where the settings were read, for messages.

        Raises:
            UnsupportedConfigError: A setting that is not reproduced, or that contradicts the images'.
        """
        _check_shared(settings, images, source)
        size = settings.get("size") or {}
        least = settings.get("min_pixels") or size.get("shortest_edge") or self.least_px
        most = settings.get("max_pixels") or size.get("longest_edge") or self.most_px
        try:
            grouped = settings.get(_GROUPED) or 2
            return FrameArea(num_grouped=grouped, least_px=least, most_px=most, of_all=self.of_all)
        except ValidationError as error:
            first = error.errors()[0]
            raise UnsupportedConfigError(f"{source}: {first['msg']}, given {first['input']!r}") from error


def _check_shared(settings: Raw, images: ImageSpec, source: str) -> None:
    if settings.get("cap_pixels_per_frame"):
        raise UnsupportedConfigError(
            f"{source}: cap_pixels_per_frame is true; frames are bounded by size alone. Set it to false"
        )
    geometry, patch, merged = images.geometry, settings.get(_PATCH), settings.get(_MERGED)
    if isinstance(geometry, Area) and patch and merged and patch * merged != geometry.step_px:
        raise UnsupportedConfigError(
            f"{source}: {_PATCH} {patch} with {_MERGED} {merged}, where images have squares of {geometry.step_px} "
            "pixels; frames and images go through one tower"
        )
    for key, shared in (("image_mean", images.mean), ("image_std", images.std)):
        given = settings.get(key)
        if given is not None and tuple(given) != shared:
            raise UnsupportedConfigError(f"{source}: {key} {list(given)}, but of images {list(shared)}")
