"""What a conversation shows, an image or a video: decoded, measured, and later filled with features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bundle.frames.plan import FramePlan, Place
from bundle.frames.wording import frame_parts
from bundle.image import TileLayout
from bundle.image_tokens import Features
from bundle.manifest import ImagePrompt
from bundle.prompt import Placeholder, Turn
from serving.models.images import DecodedImage, DecodedVideo, EncodedImage, KeptImage
from serving.protocol import Message, TextPart


@dataclass(frozen=True)
class Visual:
    """One part of a message that is no text.

    Attributes:
        pictures: To encode.
        parts: What stands for it in its turn.
        layouts: Of each image among `parts`.
        plan: How a video's pictures fill those; None of an image, which is one picture and fills one.
    """

    pictures: tuple[DecodedImage | KeptImage, ...]
    parts: tuple[str | Placeholder, ...]
    layouts: tuple[TileLayout, ...]
    plan: FramePlan | None = None

    @classmethod
    def of_image(cls, image: DecodedImage | KeptImage) -> Visual:
        """Return an image as it is."""
        return cls((image,), (Placeholder.IMAGE,), (image.layout,))

    @classmethod
    def of_video(cls, video: DecodedVideo, image_prompt: ImagePrompt) -> Visual:
        """Return a video in the checkpoint's words."""
        if video.layout is not None:
            return cls(video.pictures, (Placeholder.VIDEO,), (video.layout,), video.plan)
        parts = frame_parts(image_prompt.frames, video.plan, video.times_s, video.duration_s)
        layouts = tuple(TileLayout(fewer_tokens=place.num_tokens) for place in video.plan.places)
        return cls(video.pictures, parts, layouts, video.plan)

    def under_noise(self, step: int) -> Visual:
        """Return it with its pictures under noise.

        Raises:
            ValueError: One was not decoded.
        """
        decoded = [picture for picture in self.pictures if isinstance(picture, DecodedImage)]
        if len(decoded) != len(self.pictures):
            raise ValueError("a picture whose pixels are not here cannot be laid under noise")
        return replace(self, pictures=tuple(picture.under_noise(step) for picture in decoded))

    def filled(self, encoded: Sequence[EncodedImage]) -> list[EncodedImage]:
        """Return what fills each of its images in the prompt.

        Args:
            encoded: Of each picture.
        """
        if self.plan is None:
            return list(encoded)
        return [_filled(place, [encoded[picture] for picture in place.pictures]) for place in self.plan.places]


def _filled(place: Place, encoded: Sequence[EncodedImage]) -> EncodedImage:
    towers = [image.tower for image in encoded if image.tower is not None]
    return EncodedImage(
        place.key([image.key for image in encoded]),
        place.filled([_flat(image.features) for image in encoded]),
        max(image.preprocess_s for image in encoded),
        max(image.vision_s for image in encoded),
        all(image.is_kept for image in encoded),
        place.filled([_flat(tower) for tower in towers]) if towers else None,
        place.has_grid,
    )


def _flat(rows: Features) -> Features:
    return rows.reshape(-1, rows.shape[-1])


def turns_of(messages: Sequence[Message], visuals: Sequence[Visual]) -> list[Turn]:
    """Return a conversation as a prompt is built of it, each image and video by what stands for it."""
    left = iter(visuals)
    return [Turn(message.role, tuple(_parts(message, left)), message.calls) for message in messages]


def _parts(message: Message, visuals: Iterator[Visual]) -> Iterator[str | Placeholder]:
    for part in message.parts:
        if isinstance(part, TextPart):
            yield part.text
        else:
            yield from next(visuals).parts


def all_filled(visuals: Sequence[Visual], encoded: Sequence[EncodedImage]) -> list[EncodedImage]:
    """Return what fills each image of a prompt.

    Args:
        visuals: Of the whole conversation.
        encoded: All their pictures.
    """
    filled, start = list[EncodedImage](), 0
    for visual in visuals:
        filled += visual.filled(encoded[start : start + len(visual.pictures)])
        start += len(visual.pictures)
    return filled
