"""A cross-encoder ready to serve: how well a text and an image fit, or two texts, read together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bundle.dims import PairDims
from bundle.directory import Bundle
from bundle.errors import BundleFormatError, ParameterError, TaskError
from bundle.image import PREPROCESSOR, ImageSpec, Pixels
from bundle.text import Tokenizer
from bundle.text_pairs import TextPairs
from runtime.canary import check_canary
from runtime.pair_encoder import Pair, PairEncoder, chosen_of, fits, frames_together
from runtime.room import check_room
from runtime.settings import DEFAULT_CONTEXT_TOKENS
from serving.engine.batching import BatchWorker
from serving.engine.worker import Worker
from serving.models.cut_image import CutImage
from serving.models.pair_model import PairModel
from serving.models.pool import PreprocessPool
from serving.models.text_rows import TextRows, most_tokens
from serving.models.together import together
from serving.models.turns import Turns
from serving.models.vectors import refuse_boxes
from serving.protocol import (
    EmbedInput,
    ImagePart,
    JoinedPart,
    ScoreRequest,
    ScoreResult,
    TextPart,
)
from serving.settings import EngineSettings

_Scored = tuple[np.float64, int]
"""A pair's raw score and the tokens that it took."""
_BATCHES_AHEAD = 2
"""One batch runs while the next is made ready."""
_TOKENS_OF_TEXT = 64
"""A batch of two texts each holds as many tokens as `text_batch_rows` such texts."""


class CrossEncoderModel(PairModel):
    """One bundle that scores pairs: of a text and an image, or of two texts.

    Args:
        bundle: Opened.
        settings: Batches, threads, limits.
        pool: Decodes images and tokenizes.

    Raises:
        BundleError: The graph or the tokenizer is unusable, or the canary fails.
        MachineError: This machine cannot run it.
    """

    def __init__(self, bundle: Bundle, settings: EngineSettings, pool: PreprocessPool) -> None:
        manifest = bundle.manifest
        if manifest.pairs is None:
            raise BundleFormatError(f"{bundle.directory} is no cross-encoder; it reads no pairs")
        super().__init__(manifest, settings, pool)
        check_room(manifest, None, settings.provider)
        dims: PairDims = manifest.pairs
        self._spec = ImageSpec.read(bundle.path(PREPROCESSOR)) if manifest.sees else None
        self._rows = TextRows(bundle, dims.max_text_tokens, dims.pad_token_id)
        self._num_frames = dims.num_frames
        self._longest = min(dims.max_text_tokens, settings.context_tokens or DEFAULT_CONTEXT_TOKENS)
        self._pairs = TextPairs(self._rows.tokenizer, self._longest)
        self._encoder = PairEncoder(bundle, settings)
        if settings.check_golden:
            check_canary(bundle, self._encoder.sessions)
        batch = settings.vision_batch_tiles if self._spec else settings.text_batch_rows
        self._turns = Turns(_BATCHES_AHEAD * batch)
        self._worker: BatchWorker[Pair, np.float64] = BatchWorker(
            f"pairs-{manifest.name}",
            lambda pairs: list(self._encoder.raw_scores(pairs)),
            (lambda pair: 1) if self._spec else (lambda pair: pair.text.num_tokens),
            batch if self._spec else batch * _TOKENS_OF_TEXT,
            settings.patience,
        )

    @property
    def workers(self) -> Mapping[Worker[Any], Callable[[], None]]:
        """Its thread, and what it runs first."""
        return {self._worker: self._warm_up}

    def _warm_up(self) -> None:
        if self._spec is None:
            self._encoder.score([Pair(self._pairs.row("warm", "up"))])
        else:
            still = frames_together([self._spec.blank(1)] * self._num_frames)
            self._encoder.score([Pair(self._rows.batch(["warm-up"]), still)])

    @property
    def tokenizer(self) -> Tokenizer:
        """The texts' tokenizer."""
        return self._rows.tokenizer

    def _ids(self, text: str, adds_special_tokens: bool) -> list[int]:
        return self._rows.ids(text, adds_special_tokens)

    async def score(self, request: ScoreRequest) -> ScoreResult:
        """Return how well each pair fits, in order; an image that stands in several is decoded once.

        Raises:
            RequestError: An instruction; a pair that is not one text and one image, or not two texts, as the model
                reads; texts longer than it reads and not to be cut, bytes that are not an image, a part of one.
        """
        if request.instruction is not None:
            raise ParameterError(
                f"instruction: {request.model} is a cross-encoder, which is told none; leave it out", "instruction"
            )
        refuse_boxes([part for pair in request.pairs for part in pair], self._manifest.name)
        with self._admission.admit():
            score = self._score_texts if self._spec is None else self._score_images
            found = await score(request)
        raw = np.array([score for score, _ in found], np.float64)
        scores = raw.astype(np.float32) if request.is_raw else fits(raw)
        return ScoreResult(scores, sum(tokens for _, tokens in found))

    async def _score_texts(self, request: ScoreRequest) -> list[_Scored]:
        """Return each pair's score, of two texts, and the tokens of both."""
        most = most_tokens(request.truncate_tokens, self._pairs.fewest_tokens, self._longest)
        pairs = [_two_texts(first, second) for first, second in request.pairs]
        return await together(self._score_two(request.request_id, *pair, most) for pair in pairs)

    async def _score_two(self, owner: str, first: str, second: str, most: int | None) -> _Scored:
        async with self._turns.place(owner):
            row = await self._pool.text.run(owner, self._pairs.row, first, second, most)
            return await self._run(Pair(row))

    async def _score_images(self, request: ScoreRequest) -> list[_Scored]:
        """Return each pair's score, of a text and an image, and the tokens of its text."""
        most, owner = self._rows.most_tokens(request.truncate_tokens), request.request_id
        pairs = [self._text_and_frames(first, second) for first, second in request.pairs]
        images = list(dict.fromkeys(frame.data for _, frames in pairs for frame in frames))
        found = await together(self._pool.cut(owner, self._image_spec, data) for data in images)
        cut = dict(zip(images, found, strict=True))
        return await together(
            self._score_one(owner, text.text, [cut[frame.data] for frame in frames], most) for text, frames in pairs
        )

    def _text_and_frames(self, first: EmbedInput, second: EmbedInput) -> tuple[TextPart, tuple[ImagePart, ...]]:
        """Return the text of a pair, and what is seen: an image, or the frames that are read of a video.

        Raises:
            ParameterError: They are no text and image, or frames that the model does not read.
        """
        if self._num_frames == 1:
            text, image = _text_and_image(first, second)
            return text, (image,)
        text, frames = _text_and_video(first, second)
        return text, tuple(frames[place] for place in chosen_of(len(frames), self._num_frames))

    async def _score_one(self, owner: str, text: str, frames: Sequence[CutImage], most: int | None) -> _Scored:
        async with self._turns.place(owner):
            row = await self._pool.text.run(owner, self._rows.batch, [text], most)
            return await self._run(Pair(row, await self._pool.images.run(owner, self._pixels, frames)))

    async def _run(self, pair: Pair) -> _Scored:
        return await asyncio.wrap_future(self._worker.submit(pair)), pair.text.num_tokens

    @property
    def _image_spec(self) -> ImageSpec:
        if self._spec is None:
            raise TaskError(f"{self._manifest.name} reads two texts; it has no image tower. Send texts.")
        return self._spec

    def _pixels(self, frames: Sequence[CutImage]) -> Pixels:
        spec = self._image_spec
        found: list[Pixels] = []
        for frame in frames:
            tiles: Sequence[Any] = frame.images if frame.is_cut else spec.cut(frame.images[0])
            found.extend(spec.groups(list(tiles)))
        return frames_together(found)


def _two_texts(first: EmbedInput, second: EmbedInput) -> tuple[str, str]:
    """Return the two of a pair.

    Raises:
        ParameterError: One is no text.
    """
    if isinstance(first, TextPart) and isinstance(second, TextPart):
        return first.text, second.text
    raise ParameterError(
        f"a pair of {_kinds(first, second)}: the model reads two texts together; send texts alone", "documents"
    )


def _text_and_image(first: EmbedInput, second: EmbedInput) -> tuple[TextPart, ImagePart]:
    """Return the two of a pair, the text first.

    Raises:
        ParameterError: They are two texts, two images, or something else.
    """
    if isinstance(first, TextPart) and isinstance(second, ImagePart):
        return first, second
    if isinstance(first, ImagePart) and isinstance(second, TextPart):
        return second, first
    raise ParameterError(
        f"a pair of {_kinds(first, second)}: the model reads a text and an image together; let one be a text and the "
        "other an image",
        "documents",
    )


def _text_and_video(first: EmbedInput, second: EmbedInput) -> tuple[TextPart, tuple[ImagePart, ...]]:
    """Return the two of a pair, the text first; an image is a video that stands still.

    Raises:
        ParameterError: They are two texts, two videos, or something else.
    """
    for text, seen in ((first, second), (second, first)):
        frames = seen.parts if isinstance(seen, JoinedPart) else (seen,)
        images = tuple(frame for frame in frames if isinstance(frame, ImagePart))
        if isinstance(text, TextPart) and len(images) == len(frames):
            return text, images
    raise ParameterError(
        f"a pair of {_kinds(first, second)}: the model reads a text and a video together; let one be a text and the "
        'other an image, or the frames of a video in order, {"content": [images]}',
        "documents",
    )


def _kinds(*parts: EmbedInput) -> str:
    return " and ".join(map(_kind, parts))


def _kind(part: EmbedInput) -> str:
    if isinstance(part, TextPart):
        return "a text"
    return "an image" if isinstance(part, ImagePart) else "something that is neither text nor image alone"
