"""Fewer tokens of a request's images: what it asks for, what a model can do, and doing it once features are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import ParameterError, SettingsError
from bundle.image import TileLayout
from bundle.image_tokens import ShownImage, gives_tower
from bundle.manifest import Component, ImagePrompt
from bundle.prompt import Prompt
from bundle.reduced_prompt import reduced
from bundle.text import Tokenizer
from quant.visual_tokens.reduction import Reduction
from quant.visual_tokens.table import METHODS
from serving.models.vision import EncodedImage
from serving.models.visual import Visual
from serving.protocol import Message, TextPart, VisionReduction

_NO_IDS = np.zeros(0, np.int64)
EmbedText = Callable[[npt.NDArray[np.int64]], npt.NDArray[Any]]


@dataclass(frozen=True)
class Shown:
    """Images of a request, and what they are shown with.

    Attributes:
        prompt: With a token for every row.
        messages: Of the request.
        visuals: Of its parts that are no text, in order.
        images: What fills the prompt, in order.
    """

    prompt: Prompt
    messages: Sequence[Message]
    visuals: Sequence[Visual]
    images: Sequence[EncodedImage]


class Reducing:
    """What one model does of reductions.

    Args:
        encoder: Its vision encoder, as the manifest has it.
        image_prompt: How many tokens an image takes.
        tokenizer: The model's.
        embed_text: Ids [N] to embeddings [N, D]; called on threads that preprocess.
        default: For requests that say nothing.

    Raises:
        SettingsError: The model cannot do the default.
    """

    def __init__(
        self,
        encoder: Component,
        image_prompt: ImagePrompt,
        tokenizer: Tokenizer,
        embed_text: EmbedText,
        default: VisionReduction,
    ) -> None:
        self._encoder = encoder
        self._image_prompt = image_prompt
        self._tokenizer = tokenizer
        self._embed_text = embed_text
        try:
            self._default = self._checked(default)
        except ParameterError as error:
            raise SettingsError(f"vision_method and vision_keep, what requests get by default: {error}") from error

    def of(self, asked: VisionReduction | None) -> Reduction | None:
        """Return how a request's images are reduced; None where all their tokens are read.

        Raises:
            ParameterError: There is no such method or share, or the bundle lacks what the method reads.
        """
        return self._default if asked is None else self._checked(asked)

    def num_dropped(self, reduction: Reduction | None, layouts: Sequence[TileLayout]) -> int:
        """Return how many tokens of some images are not read."""
        if reduction is None:
            return 0
        return sum(self._image_prompt.num_tokens(each) - self._num_kept(reduction, each) for each in layouts)

    def _num_kept(self, reduction: Reduction, layout: TileLayout) -> int:
        """Return how many tokens of an image are read; one that is no tiles of one size is reduced as a whole."""
        if layout.is_uniform:
            return reduction.num_kept(layout, self._image_prompt.tokens_per_tile)
        return reduction.quota(self._image_prompt.num_tokens(layout))

    def counted(self, reduction: Reduction, prompt: Prompt, layouts: Sequence[TileLayout]) -> Prompt:
        """Return a prompt with as many tokens of each tile as would be read; which ones is not known without features.

        Their ids are the same, whichever they are.
        """
        rows = [self._first_rows(reduction, layout) for layout in layouts]
        return reduced(prompt, rows)

    def _first_rows(self, reduction: Reduction, layout: TileLayout) -> npt.NDArray[np.int64]:
        if layout.fewer_tokens is not None or not layout.is_uniform:
            return np.arange(reduction.quota(self._image_prompt.num_tokens(layout)), dtype=np.int64)
        size = self._image_prompt.tokens_per_tile
        return np.flatnonzero(np.arange(layout.num_tiles * size) % size < reduction.quota(size))

    def apply(self, reduction: Reduction, shown: Shown) -> tuple[Prompt, list[EncodedImage]]:
        """Return a prompt and its images with fewer tokens; takes milliseconds, on a thread that preprocesses.

        Args:
            reduction: How.
            shown: The images, and what they are shown with.
        """
        images = shown.images
        texts = list(self._texts(shown)) if reduction.needs_text else [None] * len(images)
        found = [
            reduction.apply(ShownImage(image.features, image.key, image.has_grid, image.tower, text))
            for image, text in zip(images, texts, strict=True)
        ]
        fewer = [
            replace(image, key=each.digest, features=each.features) for image, each in zip(images, found, strict=True)
        ]
        return reduced(shown.prompt, [each.rows for each in found]), fewer

    def _texts(self, shown: Shown) -> Iterator[npt.NDArray[Any]]:
        """Yield [N, D] for each image of the prompt: the embeddings of the texts in its message."""
        visuals = iter(shown.visuals)
        for message in shown.messages:
            of_message = [next(visuals) for part in message.parts if not isinstance(part, TextPart)]
            if not of_message:
                continue
            texts = (part.text for part in message.parts if isinstance(part, TextPart))
            embeds = self._embed_text(self._tokenizer.encode_all_plain(texts))
            for visual in of_message:
                yield from [embeds] * len(visual.layouts)

    def _checked(self, asked: VisionReduction) -> Reduction | None:
        reduction = Reduction(asked.method, asked.keep)
        if reduction.needs_tower and not gives_tower(self._encoder):
            usable = ", ".join(name for name, entry in METHODS.items() if not entry.needs_tower)
            raise ParameterError(
                f"vision.method {asked.method!r} reads the vision tower's attention, which this model's "
                f"{self._encoder.file} does not give: export its checkpoint again, or take one of {usable}",
                "vision.method",
            )
        if reduction.needs_text and self._encoder.outputs[0].shape[-1] != self._embed_text(_NO_IDS).shape[-1]:
            raise ParameterError(
                f"vision.method {asked.method!r} compares image tokens with the text, and this model's tokens are "
                "wider: they hold features of several layers. Take another method.",
                "vision.method",
            )
        return None if reduction.is_whole else reduction
