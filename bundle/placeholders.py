"""Tokens that stand for images and for videos: what each becomes in a prompt, and where their features go."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from bundle.errors import BundleFormatError, PromptError
from bundle.image.layout import TileLayout
from bundle.layouts.prompt import ImagePrompt, Span
from bundle.text import Tokenizer


class Placeholders:
    """The placeholders of one model.

    Args:
        tokenizer: The model's.
        image_prompt: How it writes images and videos.

    Raises:
        BundleFormatError: A placeholder has another id in the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, image_prompt: ImagePrompt) -> None:
        video = image_prompt.own_video
        self.ids = {image_prompt.image_token: image_prompt.image_token_id}
        self.ids |= {} if video is None else {video.token: video.token_id}
        for token, stated in self.ids.items():
            if (found := tokenizer.token_id(token)) != stated:
                raise BundleFormatError(
                    f"the manifest gives {token!r} the id {stated}, tokenizer.json gives it {found}. Export the "
                    "checkpoint again."
                )
        self._image_prompt = image_prompt
        self._pattern = re.compile("|".join(map(re.escape, self.ids)))

    def expander(self, layouts: Sequence[TileLayout]) -> Callable[[str], str]:
        """Return what replaces each placeholder of a text by the next image's or video's tokens.

        Args:
            layouts: Of all of them, in order.
        """
        texts: dict[str, list[str]] = {token: [] for token in self.ids}
        for layout in layouts:
            texts[self._of(layout)].append(self._image_prompt.text(layout))
        left = {token: iter(of_token) for token, of_token in texts.items()}

        def next_text(found: re.Match[str]) -> str:
            try:
                return next(left[found[0]])
            except StopIteration:
                raise PromptError(f"the chat template wrote more {found[0]} than the conversation has images") from None

        return lambda text: self._image_prompt.tidied(self._pattern.sub(next_text, text))

    def spans(self, token_ids: npt.NDArray[np.int64], layouts: Sequence[TileLayout]) -> tuple[Span, ...]:
        """Return where each image's rows go in a prompt, in order.

        Raises:
            PromptError: The prompt holds another number of tokens than they take.
        """
        spans: list[Span] = []
        for token, token_id in self.ids.items():
            images = [image for image, layout in enumerate(layouts) if self._filled_of(layout) == token]
            places = np.flatnonzero(token_ids == token_id)
            sizes = [self._image_prompt.num_tokens(layouts[image]) for image in images]
            if len(places) != sum(sizes):
                raise PromptError(
                    f"the prompt holds {len(places)} image tokens where its {len(images)} images take {sum(sizes)}, "
                    f"each a {token}"
                )
            for image, of_image in zip(images, np.split(places, np.cumsum(sizes)[:-1]) if sizes else [], strict=True):
                spans += _runs(image, of_image)
        return tuple(sorted(spans, key=attrgetter("start")))

    def _filled_of(self, layout: TileLayout) -> str:
        """Return the token in whose places the rows of an image, or of a video, stand."""
        video = self._image_prompt.own_video
        return self._image_prompt.image_token if video is not None and video.is_said_as_images else self._of(layout)

    def _of(self, layout: TileLayout) -> str:
        """Return the token that stands for an image, or for a video."""
        video = self._image_prompt.own_video
        return self._image_prompt.image_token if layout.video is None or video is None else video.token


def _runs(image: int, places: npt.NDArray[np.int64]) -> Iterator[Span]:
    """Yield the runs of an image's tokens that follow one another; none where features take no place in a prompt."""
    row = 0
    for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if places.size else ():
        yield Span(int(run[0]), int(run[-1]) + 1, image, row)
        row += len(run)
