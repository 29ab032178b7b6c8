"""A dual encoder ready to serve: embeddings and zero-shot classification."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle import tensors
from bundle.data_experts import task_cosines
from bundle.dims import DualEncoderDims
from bundle.directory import Bundle
from bundle.errors import BundleFormatError, ParameterError, TaskError
from bundle.similarity import similarity
from bundle.text import TextBatch, Tokenizer
from bundle.zero_shot import SLOT, label_text
from runtime.canary import check_canary
from runtime.encoder import open_encoder
from runtime.encoders import WHOLE, Vectors, encode_texts, unit
from runtime.room import check_room
from serving.engine.batching import BatchWorker
from serving.engine.worker import Worker
from serving.models.pool import PreprocessPool
from serving.models.text_rows import TextRows
from serving.models.together import together
from serving.models.turns import Turns
from serving.models.vectors import VectorModel, check_inputs, cut_all, refuse_boxes
from serving.models.vision import VisionStage
from serving.protocol import (
    ClassifyRequest,
    ClassifyResult,
    EmbedInput,
    EmbedRequest,
    EmbedResult,
    ImagePart,
    JoinedPart,
    TextPart,
    TokensPart,
)
from serving.settings import EngineSettings

_PIECE_TEXTS = 8
"""Texts of one request that are tokenized and batched as one: each piece waits for its turn among other requests'."""
_Text = str | Sequence[int]
_Embedded = Sequence[Vectors]
"""Of each input [E], or [m, E] of a model that keeps a vector for every token."""
_PIECE_PAIRS = 256
"""Images with texts, of several vectors each, that are compared as one: some tens of milliseconds."""
_BATCHES_AHEAD = 2
"""One batch of single texts runs while the next is made ready."""


class EmbeddingModel(VectorModel):
    """One dual-encoder bundle.

    Args:
        bundle: Opened.
        settings: Batches, threads, limits.
        pool: Decodes images and tokenizes.

    Raises:
        BundleError: A graph or the tokenizer is unusable, or the canary fails.
        MachineError: This machine cannot run it.
    """

    def __init__(self, bundle: Bundle, settings: EngineSettings, pool: PreprocessPool) -> None:
        manifest = bundle.manifest
        if manifest.dual is None:
            raise BundleFormatError(f"{bundle.directory} has no dual-encoder sizes; it cannot embed")
        super().__init__(manifest, settings, pool)
        check_room(manifest, None, settings.provider)
        self._dims: DualEncoderDims = manifest.dual
        self._rows = TextRows(
            bundle,
            self._dims.max_text_tokens,
            self._dims.pad_token_id,
            pads_to_max=self._dims.pads_to_max,
            replaced_tokens=self._dims.replaced_tokens,
        )
        self._vision = VisionStage(bundle, settings, pool) if manifest.sees else None
        text_name = manifest.graph("text_encoder")
        self._text = open_encoder(bundle, text_name, settings)
        self._told = (tensors.TASK_DISTANCES,) if self._dims.data_experts > 1 else ()
        if settings.check_golden:
            seen = {} if self._vision is None else self._vision.sessions
            check_canary(bundle, {**seen, text_name: self._text})
        self._turns = Turns(_BATCHES_AHEAD * settings.text_batch_rows)
        self._text_worker: BatchWorker[TextBatch, _Embedded] = BatchWorker(
            f"text-{manifest.name}", self._run_texts, _num_rows, settings.text_batch_rows, settings.patience
        )

    @property
    def workers(self) -> Mapping[Worker[Any], Callable[[], None]]:
        """Its threads, and what each runs first."""
        seeing = {} if self._vision is None else self._vision.workers
        return {self._text_worker: self._warm_up_texts, **seeing}

    @property
    def tokenizer(self) -> Tokenizer:
        """The text encoder's tokenizer."""
        return self._rows.tokenizer

    def _ids(self, text: str, adds_special_tokens: bool) -> list[int]:
        return self._rows.ids(text, adds_special_tokens)

    def _warm_up_texts(self) -> None:
        self._run_texts([self._rows.batch(["warm-up" + self._dims.replaced_tokens * " warm-up"])])

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Return one unit vector per input, in order, or one for each of its tokens.

        Raises:
            RequestError: No inputs, a size to which vectors are not cut, a text that is longer than the encoder reads
                and not to be cut, ids that are no text of the model's, bytes that are not an image.
        """
        check_inputs(request, self._dims.sizes, name=self._manifest.name, sees_regions=self._dims.regions)
        self._check_granularity(request)
        inputs = [_single(part) for part in request.inputs]
        with self._admission.admit():
            most_tokens = self._rows.most_tokens(request.truncate_tokens)
            texts = [_text_of(part) for part in inputs if not isinstance(part, ImagePart)]
            images = [part for part in inputs if isinstance(part, ImagePart)]
            of_texts, num_tokens, of_images = await self._embed_both(request.request_id, texts, images, most_tokens)
            of_texts = [own[..., : self._dims.embedding_size] for own in of_texts]
            left = {False: iter(of_texts), True: iter(of_images)}
            own = [next(left[isinstance(part, ImagePart)]) for part in inputs]
            vectors = await cut_all(self._pool.text, request.request_id, own, request.dimensions, is_raw=request.is_raw)
        return EmbedResult(np.stack(vectors) if self._dims.vectors == "one" else tuple(vectors), num_tokens)

    def _check_granularity(self, request: EmbedRequest) -> None:
        """Refuse a request for vectors of inputs where tokens have their own, and the reverse."""
        has_several = self._dims.vectors == "tokens"
        if request.granularity == "token" and not has_several:
            raise ParameterError(
                f"return_multivector, or task token_embed: {self._manifest.name} has one vector of each input; leave "
                "it out"
            )
        if request.granularity == "input" and has_several:
            raise ParameterError(
                f"task embed: {self._manifest.name} has a vector for every token; ask for token_embed", "task"
            )

    async def classify(self, request: ClassifyRequest) -> ClassifyResult:
        """Return every image's score for every label.

        Raises:
            RequestError: No images or labels, a template without its slot, an unusable image or text.
        """
        templates = request.templates or (self._dims.prompt_template,)
        if not request.images or not request.labels:
            raise ParameterError(
                f"{len(request.images)} images and {len(request.labels)} labels; send at least one of each",
                "images" if request.labels else "labels",
            )
        if not self._dims.regions:
            refuse_boxes(request.images, self._manifest.name)
        if without := [template for template in templates if SLOT not in template]:
            raise ParameterError(f"prompt_template {without[0]!r} has no {SLOT} for the label", "prompt_template")
        with self._admission.admit():
            prompts = [label_text(template, label) for label in request.labels for template in templates]
            if self._told:
                prompts += request.labels
            of_texts, num_tokens, of_images = await self._embed_both(request.request_id, prompts, request.images)
            near = await self._near(request, of_images, of_texts, len(templates))
            return ClassifyResult(await self._pool.text.run(request.request_id, scores, near, self._dims), num_tokens)

    async def _near(
        self, request: ClassifyRequest, of_images: _Embedded, of_texts: _Embedded, num_templates: int
    ) -> Vectors:
        """Return [images, labels] how near labels are to images, reckoned on the threads for text.

        Args:
            request: That asks.
            of_images: As the graph gives them.
            of_texts: Of the labels in their templates, the templates of a label together; where several models tell
                what the labels say, of the labels alone behind them.
            num_templates: Of each label.
        """
        owner, crew, num_labels = request.request_id, self._pool.text, len(request.labels)
        if self._told:
            return await crew.run(owner, self._near_by_task, of_images, of_texts, num_labels)
        if self._dims.vectors == "one":
            return await crew.run(owner, _near_by_mean, of_images, of_texts, num_labels)
        starts = range(0, len(of_texts), _PIECE_PAIRS)
        images = await crew.run(owner, _units, of_images)
        pieces = await together(crew.run(owner, _units, of_texts[start : start + _PIECE_PAIRS]) for start in starts)
        work = (crew.run(owner, _near_by_tokens, image, piece) for image in images for piece in pieces)
        near = np.concatenate(await together(work))
        means: Vectors = near.reshape(len(of_images), num_labels, num_templates).mean(axis=-1).astype(np.float32)
        return means

    def _near_by_task(self, of_images: _Embedded, of_texts: _Embedded, num_labels: int) -> Vectors:
        """Return [images, labels] how near labels are by several models, weighed by what all the labels say.

        Args:
            of_images: Of each [E].
            of_texts: Of each [E + N], of the labels in their templates, and behind them of the labels alone.
            num_labels: Of them.
        """
        images, texts, size = np.stack(of_images), np.stack(of_texts), self._dims.embedding_size
        in_templates, alone = texts[:-num_labels, :size], texts[-num_labels:, size:]
        return task_cosines(unit(images), in_templates.reshape(num_labels, -1, size), alone)

    async def _embed_both(
        self, owner: str, texts: Sequence[_Text], images: Sequence[ImagePart], most_tokens: int | None = None
    ) -> tuple[_Embedded, int, _Embedded]:
        """Return the vectors of texts, the tokens they took, and the vectors of images, as the graphs give them."""
        of_texts = self._embed_texts(owner, texts, most_tokens)
        work: list[Coroutine[Any, Any, Any]] = [of_texts, self._embed_images(owner, images)]
        (vectors, num_tokens), of_images = await together(work)
        return vectors, num_tokens, of_images

    async def _embed_texts(self, owner: str, texts: Sequence[_Text], most_tokens: int | None) -> tuple[_Embedded, int]:
        """Return the vectors of texts and the tokens they took."""
        size = min(_PIECE_TEXTS, self._settings.text_batch_rows)
        pieces = [texts[start : start + size] for start in range(0, len(texts), size)]
        embedded = await together(self._embed_piece(owner, piece, most_tokens) for piece in pieces)
        return [own for vectors, _ in embedded for own in vectors], sum(num_tokens for _, num_tokens in embedded)

    async def _embed_piece(self, owner: str, texts: Sequence[_Text], most_tokens: int | None) -> tuple[_Embedded, int]:
        """Return the vectors of a few texts, and the tokens they took."""
        async with self._turns.place(owner):
            rows = await self._pool.text.run(owner, self._rows.batch, texts, most_tokens)
            return await asyncio.wrap_future(self._text_worker.submit(rows)), rows.num_tokens

    async def _embed_images(self, owner: str, images: Sequence[ImagePart]) -> _Embedded:
        """Return the vectors of images.

        Raises:
            TaskError: The model embeds texts alone.
        """
        if not images:
            return []
        if (vision := self._vision) is None:
            raise TaskError(f"{self._manifest.name} embeds texts alone; it has no image tower. Send texts.")
        if self._dims.regions:
            return await self._embed_regions(owner, images, vision)
        decoded = await together(vision.decode(owner, image.data) for image in images)
        encoded = await together(vision.encode(owner, image) for image in decoded)
        return [image.features[0] for image in encoded]

    async def _embed_regions(self, owner: str, images: Sequence[ImagePart], vision: VisionStage) -> _Embedded:
        """Return the vectors of images and parts of them; those of one image are of one run."""
        places: dict[bytes, list[int]] = {}
        for place, image in enumerate(images):
            places.setdefault(image.data, []).append(place)
        boxes = {file: [images[place].box or WHOLE for place in those] for file, those in places.items()}
        asked = [(file, each if any(box != WHOLE for box in each) else []) for file, each in boxes.items()]
        decoded = await together(vision.decode(owner, file, boxes=each) for file, each in asked)
        encoded = await together(vision.encode(owner, image) for image in decoded)
        vectors: dict[int, Vectors] = {}
        for those, seen in zip(places.values(), encoded, strict=True):
            of_image = seen.features[0]
            vectors |= {place: of_image[min(at, len(of_image) - 1)] for at, place in enumerate(those)}
        return [vectors[place] for place in range(len(images))]

    def _run_texts(self, rows: list[TextBatch]) -> list[_Embedded]:
        """Return the vectors of each item's texts, of one run over all."""
        vectors = [own.copy() for own in encode_texts(self._text, rows, self._dims, told=self._told)]
        ends = np.cumsum([_num_rows(item) for item in rows])
        return [vectors[end - _num_rows(item) : end] for item, end in zip(rows, ends, strict=True)]


def _single(part: EmbedInput) -> TextPart | ImagePart | TokensPart:
    """Return an input that is one text or one image.

    Raises:
        ParameterError: It is several.
    """
    if isinstance(part, JoinedPart):
        raise ParameterError(
            f"an input of {len(part.parts)} parts: the model has an encoder for texts and one for images, and embeds "
            "each by itself; send them as inputs of their own, or name a model that embeds by a decoder",
            "input",
        )
    return part


def _text_of(part: TextPart | TokensPart) -> _Text:
    return part.text if isinstance(part, TextPart) else part.token_ids


def _num_rows(batch: TextBatch) -> int:
    return len(batch.input_ids)


def _near_by_mean(of_images: _Embedded, of_texts: _Embedded, num_labels: int) -> Vectors:
    """Return [images, labels] cosines of images, of each [E], and the means of each label's texts, of each [E]."""
    images, texts = (unit(np.stack(each)) for each in (of_images, of_texts))
    near: Vectors = images @ unit(texts.reshape(num_labels, -1, texts.shape[-1]).mean(axis=1)).T
    return near


def _units(embedded: _Embedded) -> _Embedded:
    return [unit(own) for own in embedded]


def _near_by_tokens(image: Vectors, texts: _Embedded) -> npt.NDArray[np.float64]:
    """Return [texts] how near texts are to an image [m, E]: the mean over patches of their nearest token's cosine.

    As FILIP scores an image with texts (arXiv 2111.07783, section 3.1). The mean over the templates of a label
    (section 3.3) is the caller's.
    """
    return np.array([similarity(image, text) / len(image) for text in texts])


def scores(cosines: Vectors, dims: DualEncoderDims) -> Vectors:
    """Return [images, labels] probabilities over the labels ("softmax", CLIP) or of each label ("sigmoid", SigLIP)."""
    logits = cosines.astype(np.float64) * dims.logit_scale + dims.logit_bias
    if dims.scoring == "sigmoid":
        return (1 / (1 + np.exp(-logits))).astype(np.float32)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Vectors = (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
    return probabilities
