"""The vision stage of a model: image bytes to features, batched over requests, each image encoded once.

Images are decoded and preprocessed on the preprocessing pool, encoded on the stage's own thread, and kept by content.
Chat, embeddings and classification share it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bundle.directory import Bundle
from bundle.errors import ParameterError
from bundle.image import PREPROCESSOR, ImageSpec, Pixels, TileLayout
from bundle.image.geometry import Box
from bundle.image.noise import under_noise
from bundle.manifest import ComponentName, Manifest
from bundle.question import Asked
from runtime.encoder import Encoder
from runtime.encoders import WHOLE, encode_images, split_seen
from runtime.tensorrt.bounds import try_bounds
from serving.engine.batching import BatchWorker
from serving.engine.worker import Worker
from serving.models.cut_frames import FrameRoom
from serving.models.cut_image import CutImage
from serving.models.elsewhere import AbsentEncoder, Elsewhere, SentImage
from serving.models.images import DecodedImage, DecodedVideo, EncodedImage, Features, KeptImage, Share
from serving.models.known_files import KnownFile, KnownFiles, file_digest
from serving.models.pool import PreprocessPool
from serving.models.turns import Turns
from serving.protocol import VideoPart
from serving.settings import EngineSettings

_TOWER = b"with the tower's attention"
_AMONG = b"among others"
_MOST_BYTES_HASHED_AT_ONCE = 256 << 10
"""On the event loop, in a quarter of a millisecond; larger files are hashed on a thread."""
_BATCHES_AHEAD = 2
"""One batch of images runs while the next is made ready; further ones wait as 8-bit images, a quarter of their pixels'
size: a whole queue of tiled ones would take gigabytes."""


@dataclass(frozen=True)
class _Pixels:
    """An image's tiles for the encoder, weighed by their number.

    Attributes:
        groups: As `ImageSpec.groups` returns them.
        layout: How the image was cut.
        with_tower: As `DecodedImage.with_tower`.
        question: As `DecodedImage.question`.
    """

    groups: tuple[Pixels, ...]
    layout: TileLayout
    with_tower: bool
    question: Asked | None

    def __len__(self) -> int:
        return sum(map(len, self.groups))


@dataclass
class _Flight:
    """An image being encoded, and how many callers wait for it."""

    task: asyncio.Task[EncodedImage]
    num_callers: int = 0


class VisionStage:
    """One model's vision encoder, used from one event loop.

    Args:
        bundle: Opened.
        settings: Batch size, threads.
        pool: Decodes and preprocesses, and keeps features.
    """

    def __init__(self, bundle: Bundle, settings: EngineSettings, pool: PreprocessPool) -> None:
        self.name = bundle.manifest.graph("vision_encoder")
        self.session: Encoder = (
            pool.towers.open(bundle, self.name, settings)
            if pool.elsewhere is None
            else AbsentEncoder(bundle, self.name)
        )
        self._spec = ImageSpec.read(bundle.path(PREPROCESSOR))
        self._image_prompt = bundle.manifest.image_prompt
        self._any_question: Asked | None = None if bundle.manifest.question is None else (0,)
        self._identity = encoder_identity(bundle.manifest, self._spec)
        self._identity_among = encoder_identity(bundle.manifest, self._spec.among(self._spec.geometry.others_from))
        self._frame_identity = encoder_identity(bundle.manifest, self._spec.for_frames)
        self._pool = pool
        self._bounds = try_bounds(bundle, settings)
        self._max_tiles = settings.vision_batch_tiles
        self.cache = pool.features.share()
        self._known_files = KnownFiles()
        self._in_flight: dict[bytes, _Flight] = {}
        self._turns = Turns(_BATCHES_AHEAD * self._max_tiles)
        self.worker: BatchWorker[_Pixels, Features] = BatchWorker(
            f"vision-{bundle.name}", self._run, len, self._max_tiles, settings.patience
        )

    @property
    def sessions(self) -> dict[ComponentName, Encoder]:
        """The encoder by its name, where this process runs it."""
        return {} if self._pool.elsewhere is not None else {self.name: self.session}

    @property
    def workers(self) -> dict[Worker[Any], Callable[[], None]]:
        """The thread, and what it runs first, where this process runs the encoder."""
        return {} if self._pool.elsewhere is not None else {self.worker: self.warm_up}

    @property
    def gauges(self) -> dict[str, float]:
        """Return the image cache's numbers for `/metrics`."""
        return {
            "image_cache_bytes": float(self.cache.num_bytes),
            "image_cache_hits": float(self.cache.num_hits),
            "image_cache_misses": float(self.cache.num_misses),
            "num_images_waiting": float(len(self._in_flight)),
        }

    def warm_up(self) -> None:
        """Run once on a blank tile, so that no request pays for the first run; on all numbers that are captured.

        Nothing may be captured once requests run: what other threads ask of the device would spoil it.
        """
        for size in range(1, (self._max_tiles if self.session.is_captured else 1) + 1):
            self.run([self._spec.blank(1)] * size)

    async def decode(
        self,
        owner: Hashable,
        data: bytes,
        *,
        with_tower: bool = False,
        seen_side: Share | None = None,
        num_images: int = 1,
        wants_pixels: bool = False,
        question: Asked | None = None,
        boxes: Sequence[Box] = (),
    ) -> DecodedImage | KeptImage:
        """Return the decoded image, or its features where they are kept.

        Args:
            owner: The request: requests take turns.
            data: The encoded image.
            with_tower: What the tower's attention says of it will be asked for; the encoder gives that.
            seen_side: How much of a tile's side is encoded; None: all of it.
            num_images: Of the prompt.
            wants_pixels: It is decoded, whatever is kept of it.
            question: That is read beside it, where the encoder reads one.
            boxes: Of the image, each of which gets a vector, where the encoder takes some; none: all of it.

        Raises:
            ImageError: The bytes are not an image, one over the limits, or one that takes too long.
            OutOfMemoryError: This machine lacks memory for it.
            EngineDeadError: The pool is closed or hangs.
        """
        is_small = len(data) <= _MOST_BYTES_HASHED_AT_ONCE
        digest = file_digest(data) if is_small else await self._pool.images.run(owner, file_digest, data)
        side_px = None if seen_side is None else self._spec.tile_size_px[0] * seen_side.part // seen_side.whole
        spec = self._spec.among(num_images)
        identity = self._identity if spec is self._spec else self._identity_among
        told = _sized(side_px) + _asked(_flat(boxes) or question)
        file = digest + _TOWER * with_tower + told + _AMONG * (spec is not self._spec)
        known = self._known_files.try_get(file)
        kept = None if known is None else self._pool.features.try_get(known.key)
        if known is not None and kept is not None and not wants_pixels:
            return KeptImage(known.key, known.layout, kept, with_tower)
        cut = await self._pool.cut(owner, spec, data)
        key = _key(identity + told, cut.digest, with_tower)
        layout = spec.layout(cut.width_px, cut.height_px)
        if self._bounds is not None:
            self._bounds.check_image(layout)
        self._known_files.put(file, KnownFile(key, layout))
        if boxes:
            question = _flat(_placed(spec, box, cut) for box in boxes)
        return DecodedImage(key, cut, layout, with_tower, side_px, question=question)

    async def decode_frames(
        self,
        owner: Hashable,
        video: VideoPart,
        room: FrameRoom,
        *,
        with_tower: bool = False,
        question: Asked | None = None,
    ) -> DecodedVideo:
        """Return the decoded frames of a video, as the pictures of their layout.

        Args:
            owner: The request: requests take turns.
            video: Encoded.
            room: That the model has for it.
            with_tower: As of `decode`.
            question: As of `decode`.

        Raises:
            RequestError: It is no video, one over the limits, takes too long, or does not fit.
            MachineError: This machine lacks memory, or what decodes such a file.
            EngineDeadError: The pool is closed or hangs.
        """
        cut = await self._pool.cut_frames(owner, self._spec, video.files, video.options, room)
        whole = cut.layout(video.options, room)
        layout, identity = TileLayout(), self._frame_identity + _asked(question)
        if whole is not None:
            layout = TileLayout(whole_px=whole.whole_px, is_group=True)
            identity += f"frames of {whole.whole_px} px".encode()
        pictures = tuple(
            DecodedImage(_key(identity, each.digest, with_tower), each, layout, with_tower, question=question)
            for each in cut.pictures
        )
        return DecodedVideo(pictures, cut.plan(video.options, room), cut.times_s, cut.duration_s, whole)

    async def encode(self, owner: Hashable, image: DecodedImage | KeptImage) -> EncodedImage:
        """Return the features of an image: kept ones, those being computed for somebody else, or new ones.

        Args:
            owner: The request: requests take turns.
            image: From `decode`.
        """
        kept = self.cache.try_get(image.key)
        if isinstance(image, KeptImage):
            return replace(self._encoded(image, image.seen), is_kept=True)  # whatever was dropped meanwhile
        if kept is not None:
            return replace(self._encoded(image, kept), is_kept=True)
        flight = self._in_flight.get(image.key) or self._take_off(owner, image)
        flight.num_callers += 1
        try:
            return await asyncio.shield(flight.task)  # a caller that leaves takes nothing from the others
        finally:
            flight.num_callers -= 1
            if flight.num_callers == 0:
                self._land(image.key, flight)

    def run(self, images: list[Pixels], question: Asked | None = None) -> list[Features]:
        """Return the features of each image's tiles, at most `vision_batch_tiles` of them in one run.

        Args:
            images: At least one, each of tiles of one size.
            question: That is read beside all of them, where the encoder reads one; None: any.
        """
        groups, asked = [[image] for image in images], self._any_question if question is None else question
        return encode_images(self.session, groups, self._max_tiles, questions=[asked] * len(images))

    def _run(self, images: list[_Pixels]) -> list[Features]:
        """Run a batch in which the tower is asked about some images.

        Those run apart from the others and from each other: what a runtime rounds depends on what it computes beside,
        and attention over a whole tile on how many tiles there are, by a last bit that decides which token is kept.
        """
        plain = [image for image in images if not image.with_tower]
        groups, questions = [image.groups for image in plain], [image.question for image in plain]
        found = iter(encode_images(self.session, groups, self._max_tiles, questions=questions))
        return [
            self._arranged(self._seen(image) if image.with_tower else next(found), image.layout) for image in images
        ]

    def _seen(self, image: _Pixels) -> Features:
        asked = [image.question]
        return encode_images(self.session, [image.groups], self._max_tiles, questions=asked, with_tower=True)[0]

    def _arranged(self, features: Features, layout: TileLayout) -> Features:
        """Return an image's features in the order of its tokens in a prompt."""
        return features if self._image_prompt is None else self._image_prompt.arranged(features, layout)

    def _encoded(self, image: DecodedImage | KeptImage, seen: Features) -> EncodedImage:
        """Return an image with what the encoder gave, and no times."""
        if not image.with_tower:
            return EncodedImage(image.key, seen, has_grid=image.layout.is_uniform)
        features, tower = split_seen(self.session, seen)
        return EncodedImage(image.key, features, tower=tower, has_grid=image.layout.is_uniform)

    def _groups(self, image: DecodedImage) -> tuple[Pixels, ...]:
        cut, side_px = image.cut, image.side_px
        tiles = cut.images if cut.is_cut else self._spec.cut(cut.images[0])
        groups = tuple(self._spec.groups(tiles if side_px is None else self._spec.smaller(tiles, side_px)))
        if image.noise_step is not None:
            rng = np.random.Generator(np.random.Philox(int.from_bytes(image.key[:16], "little")))
            groups = tuple(under_noise(self._spec, each, image.noise_step, rng) for each in groups)
        return tuple(map(self._spec.grouped, groups)) if image.layout.is_group else groups

    def _take_off(self, owner: Hashable, image: DecodedImage) -> _Flight:
        flight = _Flight(asyncio.get_running_loop().create_task(self._encode(owner, image)))
        self._in_flight[image.key] = flight
        return flight

    def _land(self, key: bytes, flight: _Flight) -> None:
        """Forget an image that nobody waits for any more; what is not begun of it is not done."""
        flight.task.cancel()
        if self._in_flight.get(key) is flight:
            del self._in_flight[key]

    async def _encode(self, owner: Hashable, image: DecodedImage) -> EncodedImage:
        if self._pool.elsewhere is not None:
            return await self._encode_elsewhere(owner, image, self._pool.elsewhere)
        async with self._turns.place(owner):
            started_s = time.monotonic()
            groups = await self._pool.images.run(owner, self._groups, image)
            preprocessed_s = time.monotonic()
            pixels = _Pixels(groups, image.layout, image.with_tower, image.question)
            seen = await asyncio.wrap_future(self.worker.submit(pixels))
        self.cache.put(image.key, seen)
        vision_s = time.monotonic() - preprocessed_s
        return replace(self._encoded(image, seen), preprocess_s=preprocessed_s - started_s, vision_s=vision_s)

    async def _encode_elsewhere(self, owner: Hashable, image: DecodedImage, elsewhere: Elsewhere) -> EncodedImage:
        started_s = time.monotonic()
        fields = image.key, image.cut, image.layout, image.with_tower, image.side_px, image.noise_step, image.question
        seen = await elsewhere.see(await self._pool.images.run(owner, SentImage.of, *fields))
        self.cache.put(image.key, seen)
        return replace(self._encoded(image, seen), vision_s=time.monotonic() - started_s)

    async def see(self, owner: Hashable, image: DecodedImage) -> Features:
        """Return what the encoder gives of an image, as it is kept: features, and the tower's view behind them.

        Args:
            owner: The request: requests take turns.
            image: From `decode`.
        """
        kept = self.cache.try_get(image.key)
        if kept is not None:
            return kept
        encoded = await self.encode(owner, image)
        if encoded.tower is None:
            return encoded.features
        return np.concatenate([encoded.features, encoded.tower], axis=-1)


def _placed(spec: ImageSpec, box: Box, cut: CutImage) -> Box:
    """Return where a box of an image lies in what the encoder takes; that of all of it is no place.

    Raises:
        ParameterError: Its sides are one in the numbers that the encoder reckons in, so that it would mean all of it.
    """
    if box == WHOLE:
        return box
    left, top, right, bottom = placed = spec.geometry.placed(box, cut.width_px, cut.height_px)
    if np.float32(left) >= np.float32(right) or np.float32(top) >= np.float32(bottom):
        raise ParameterError(f"box {list(box)} is too thin for this image of {cut.width_px} x {cut.height_px}", "box")
    return placed


def _flat(boxes: Iterable[Box]) -> Asked:
    return tuple(number for box in boxes for number in box)


def _sized(side_px: int | None) -> bytes:
    """Return what a smaller side adds to the keys of an image."""
    return b"" if side_px is None else f"tiles of {side_px} px".encode()


def _asked(question: Asked | None) -> bytes:
    """Return what the question that is read beside an image adds to its keys."""
    return b"" if question is None else f"asked {question}".encode()


def _key(identity: bytes, digest: bytes, with_tower: bool) -> bytes:
    return hashlib.sha256(identity + _TOWER * with_tower + digest).digest()


def encoder_identity(manifest: Manifest, spec: ImageSpec) -> bytes:
    """Return what, beside the pixels, decides an image's features: the encoder's files and the preprocessing."""
    file = manifest.components[manifest.graph("vision_encoder")].file
    digests = [manifest.files[name].sha256 for name in sorted(manifest.files) if name.startswith(file)]
    return "|".join([*digests, spec.model_dump_json()]).encode()
