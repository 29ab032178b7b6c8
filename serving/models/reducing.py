"""Fewer tokens of a request's images: what it asks for, what a model can do, and doing it once features are there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bundle.errors import ParameterError, SettingsError
from bundle.image import TileLayout
from bundle.image_tokens import ShownImage, gives_tower
from bundle.manifest import ImagePrompt, Manifest
from bundle.prompt import Prompt
from bundle.reduced_prompt import reduced
from bundle.text import Tokenizer
from quant.visual_tokens.offered import has_wide_tokens
from quant.visual_tokens.reduction import Reduction
from quant.visual_tokens.resize import Resize, missing
from quant.visual_tokens.table import METHODS, RESIZE
from serving.models.images import EncodedImage, Share
from serving.models.visual import Visual
from serving.protocol import Message, TextPart, VisionReduction

ImageReduction: TypeAlias = Reduction | Resize
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
        manifest: Of its bundle.
        image_prompt: How many tokens an image takes.
        tokenizer: The model's.
        embed_text: Ids [N] to embeddings [N, D]; called on threads that preprocess.
        default: For requests that say nothing.

    Raises:
        SettingsError: The model cannot do the default.
    """

    def __init__(
        self,
        manifest: Manifest,
        image_prompt: ImagePrompt,
        tokenizer: Tokenizer,
        embed_text: EmbedText,
        default: VisionReduction,
    ) -> None:
        self._manifest = manifest
        self._encoder = manifest.components[manifest.graph("vision_encoder")]
        self._image_prompt = image_prompt
        self._tokenizer = tokenizer
        self._embed_text = embed_text
        try:
            self._default = self._checked(default)
        except ParameterError as error:
            raise SettingsError(f"vision_method and vision_keep, what requests get by default: {error}") from error

    def of(self, asked: VisionReduction | None) -> ImageReduction | None:
        """Return how a request's images are reduced; None where all their tokens are read.

        Raises:
            ParameterError: There is no such method or share, or the bundle lacks what the method reads.
        """
        return self._default if asked is None else self._checked(asked)

    def seen_side(self, reduction: ImageReduction) -> Share | None:
        """Return how much of a tile's side is encoded; None: all of it."""
        size = self._image_prompt.tokens_per_tile
        side = reduction.seen_side(size)
        return None if side is None else Share(side, math.isqrt(size))

    def check_frames(self, reduction: ImageReduction | None) -> None:
        """Check that frames of a video may be reduced so.

        Raises:
            ParameterError: They may not.
        """
        if isinstance(reduction, Resize):
            raise ParameterError(
                f"vision.method {RESIZE!r} is of images; frames of a video are laid out in full tiles: choose another "
                "method, or fewer frames",
                "vision.method",
            )

    def num_places(self, reduction: ImageReduction | None, num_rows: int) -> int:
        """Return how many tokens of whole images some rows of features stand for."""
        size = self._image_prompt.tokens_per_tile
        return num_rows * size // reduction.quota(size) if isinstance(reduction, Resize) else num_rows

    def num_dropped(self, reduction: ImageReduction | None, layouts: Sequence[TileLayout]) -> int:
        """Return how many tokens of some images are not read."""
        if reduction is None:
            return 0
        return sum(self._image_prompt.num_tokens(each) - self._num_kept(reduction, each) for each in layouts)

    def _num_kept(self, reduction: ImageReduction, layout: TileLayout) -> int:
        """Return how many tokens of an image are read; one that is no tiles of one size is reduced as a whole."""
        if layout.is_uniform:
            return reduction.num_kept(layout, self._image_prompt.tokens_per_tile)
        return reduction.quota(self._image_prompt.num_tokens(layout))

    def counted(self, reduction: ImageReduction, prompt: Prompt, layouts: Sequence[TileLayout]) -> Prompt:
        """Return a prompt with as many tokens of each tile as would be read; which ones is not known without features.

        Their ids are the same, whichever they are.
        """
        rows = [self._first_rows(reduction, layout) for layout in layouts]
        return reduced(prompt, rows)

    def _first_rows(self, reduction: ImageReduction, layout: TileLayout) -> npt.NDArray[np.int64]:
        if layout.fewer_tokens is not None or not layout.is_uniform:
            return np.arange(reduction.quota(self._image_prompt.num_tokens(layout)), dtype=np.int64)
        size = self._image_prompt.tokens_per_tile
        return np.flatnonzero(np.arange(layout.num_tiles * size) % size < reduction.quota(size))

    def apply(self, reduction: ImageReduction, shown: Shown) -> tuple[Prompt, list[EncodedImage]]:
        """Return a prompt and its images with fewer tokens; takes milliseconds, on a thread that preprocesses.

        Args:
            reduction: How.
            shown: The images, and what they are shown with.
        """
        images = shown.images
        places = self._image_prompt.tokens_per_tile if isinstance(reduction, Resize) else None
        texts = list(self._texts(shown)) if reduction.needs_text else [None] * len(images)
        found = [
            reduction.apply(ShownImage(image.features, image.key, image.has_grid, image.tower, text, places))
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

    def _checked(self, asked: VisionReduction) -> ImageReduction | None:
        reduction = self._known(asked)
        if reduction is not None and self._image_prompt.fills_memory:
            raise ParameterError(
                f"vision.method {asked.method!r} leaves out tokens of images, and {self._manifest.name} has one for an "
                "image: features stand in a memory beside its prompts. Leave vision out",
                "vision.method",
            )
        return reduction

    def _known(self, asked: VisionReduction) -> ImageReduction | None:
        if asked.method == RESIZE:
            return self._resized(asked.keep)
        reduction = Reduction(asked.method, asked.keep)
        if reduction.needs_tower and not gives_tower(self._encoder):
            usable = ", ".join(name for name, entry in METHODS.items() if not entry.needs_tower)
            raise ParameterError(
                f"vision.method {asked.method!r} reads the vision tower's attention, which this model's "
                f"{self._encoder.file} does not give: take one of {usable}. Towers like LLaVA's give it, in bundles "
                "that were exported since it is read",
                "vision.method",
            )
        if reduction.needs_text and has_wide_tokens(self._manifest):
            raise ParameterError(
                f"vision.method {asked.method!r} compares image tokens with the text, and this model's tokens are "
                "wider: they hold features of several layers. Take another method.",
                "vision.method",
            )
        return None if reduction.is_whole else reduction

    def _resized(self, keep: float) -> Resize | None:
        resize = Resize(keep)
        if resize.is_whole:
            return None
        if reason := missing(self._manifest):
            raise ParameterError(f"vision.method {RESIZE!r}: {reason}", "vision.method")
        return resize
