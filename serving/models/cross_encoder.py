"""A cross-encoder ready to serve: how well a text and an image fit, read together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bundle.directory import Bundle
from bundle.errors import BundleFormatError, ParameterError
from bundle.image import PREPROCESSOR, ImageSpec, Pixels
from bundle.manifest import PairDims
from bundle.text import Tokenizer
from runtime.canary import check_canary
from runtime.pair_encoder import Pair, PairEncoder
from runtime.room import check_room
from serving.engine.batching import BatchWorker
from serving.engine.worker import Worker
from serving.models.cut_image import CutImage
from serving.models.one_pass import OnePassModel
from serving.models.pool import PreprocessPool
from serving.models.text_rows import TextRows
from serving.models.together import together
from serving.models.turns import Turns
from serving.protocol import (
    EmbedInput,
    ImagePart,
    ScoreRequest,
    ScoreResult,
    TextPart,
)
from serving.settings import EngineSettings

_PAIRS_AHEAD = 2
"""Batches: one runs while the next is made ready."""


class CrossEncoderModel(OnePassModel):
    """One bundle that scores pairs of a text and an image.

    Args:
        bundle: Opened.
        settings: Batches, threads, limits.
        pool: Decodes images and tokenizes.

    Raises:
        BundleError: The graph or the tokenizer is unusable, or the canary fails.
        MachineError: This machine cannot run it.
    """

    does = "scoring pairs"

    def __init__(self, bundle: Bundle, settings: EngineSettings, pool: PreprocessPool) -> None:
        manifest = bundle.manifest
        if manifest.pairs is None:
            raise BundleFormatError(f"{bundle.directory} is no cross-encoder; it reads no pairs")
        super().__init__(manifest, settings, pool)
        check_room(manifest, None, settings.provider)
        self._dims: PairDims = manifest.pairs
        self._spec = ImageSpec.read(bundle.path(PREPROCESSOR))
        self._rows = TextRows(bundle, self._dims.max_text_tokens, self._dims.pad_token_id)
        self._encoder = PairEncoder(bundle, settings)
        if settings.check_golden:
            check_canary(bundle, self._encoder.sessions)
        self._turns = Turns(_PAIRS_AHEAD * settings.vision_batch_tiles)
        self._worker: BatchWorker[Pair, np.float32] = BatchWorker(
            f"pairs-{manifest.name}",
            lambda pairs: list(self._encoder.score(pairs)),
            lambda pair: 1,
            settings.vision_batch_tiles,
            settings.patience,
        )

    @property
    def workers(self) -> Mapping[Worker[Any], Callable[[], None]]:
        """Its thread, and what it runs first."""
        return {self._worker: self._warm_up}

    def _warm_up(self) -> None:
        self._encoder.score([Pair(self._rows.batch(["warm-up"]), self._spec.blank(1))])

    @property
    def tokenizer(self) -> Tokenizer:
        """The texts' tokenizer."""
        return self._rows.tokenizer

    def _ids(self, text: str, adds_special_tokens: bool) -> list[int]:
        return self._rows.ids(text, adds_special_tokens)

    async def score(self, request: ScoreRequest) -> ScoreResult:
        """Return how well each pair fits, in order; an image that stands in several is decoded once.

        Raises:
            RequestError: A pair that is not one text and one image, a text longer than the model reads and not to be
                cut, bytes that are not an image.
        """
        most_tokens = self._rows.most_tokens(request.truncate_tokens)
        pairs = [_text_and_image(first, second) for first, second in request.pairs]
        owner = request.request_id
        with self._admission.admit():
            images = list(dict.fromkeys(image.data for _, image in pairs))
            cut = dict(
                zip(images, await together(self._pool.cut(owner, self._spec, data) for data in images), strict=True)
            )
            found = await together(
                self._score_one(owner, text.text, cut[image.data], most_tokens) for text, image in pairs
            )
        scores = np.array([score for score, _ in found], np.float32)
        return ScoreResult(scores, sum(tokens for _, tokens in found))

    async def _score_one(
        self, owner: str, text: str, image: CutImage, most_tokens: int | None
    ) -> tuple[np.float32, int]:
        """Return a pair's score and the tokens of its text."""
        async with self._turns.place(owner):
            row = await self._pool.text.run(owner, self._rows.batch, [text], most_tokens)
            pixels = await self._pool.images.run(owner, self._pixels, image)
            return await asyncio.wrap_future(self._worker.submit(Pair(row, pixels))), row.num_tokens

    def _pixels(self, image: CutImage) -> Pixels:
        tiles: Sequence[Any] = image.images if image.is_cut else self._spec.cut(image.images[0])
        (pixels,) = self._spec.groups(list(tiles))
        return pixels


def _text_and_image(first: EmbedInput, second: EmbedInput) -> tuple[TextPart, ImagePart]:
    """Return the two of a pair, the text first.

    Raises:
        ParameterError: They are two texts, two images, or something else.
    """
    if isinstance(first, TextPart) and isinstance(second, ImagePart):
        return first, second
    if isinstance(first, ImagePart) and isinstance(second, TextPart):
        return second, first
    kinds = " and ".join(_kind(each) for each in (first, second))
    raise ParameterError(
        f"a pair of {kinds}: the model reads a text and an image together; let one be a text and the other an image",
        "documents",
    )


def _kind(part: EmbedInput) -> str:
    if isinstance(part, TextPart):
        return "a text"
    return "an image" if isinstance(part, ImagePart) else "something that is neither text nor image alone"
