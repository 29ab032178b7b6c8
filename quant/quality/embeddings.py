"""How a variant of a model that embeds does so beside its parent: cosines, recall both ways, zero-shot accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from bundle.directory import Bundle
from bundle.similarity import similarity
from quant.quality.evaluation import (
    ALL_TASKS,
    Caption,
    Evaluation,
    Flags,
    Labelled,
    Measured,
    PairedFlags,
    Progress,
    images_of,
)
from quant.quality.measures import Float64, Likeness, likenesses_of
from runtime.embedder_runner import EmbedderRunner
from runtime.encoders import Vectors
from runtime.image_runner import ImageRunner
from runtime.one_embedding import DualEncoderRunner
from runtime.settings import RuntimeSettings

_RECALLS = (1, 5)
_IMAGES_AT_ONCE = 32
"""Images that are open together: a large file of samples never lies in memory whole."""


Embedded = Sequence[Vectors]
"""Of each input [E], or [m, E] of a model that keeps a vector for every token; rows have length 1."""


class ImageVectors(Protocol):
    """What is asked of a model that embeds images."""

    def embed_images(self, images: Sequence[Image.Image]) -> Vectors | list[Vectors]:
        """Return the vectors of each image."""


class EmbeddingRunner(ImageVectors, Protocol):
    """What is asked of a model of both; those of `runtime.one_request` and `runtime.embedder_runner` do it."""

    def embed_texts(self, texts: Sequence[str]) -> Vectors | list[Vectors]:
        """Return the vectors of each text."""


def runner_of(bundle: Bundle, settings: RuntimeSettings) -> EmbeddingRunner:
    """Return what embeds with a bundle that makes vectors."""
    return DualEncoderRunner(bundle, settings) if bundle.manifest.dual else EmbedderRunner(bundle, settings)


def image_runner_of(bundle: Bundle, settings: RuntimeSettings) -> ImageVectors:
    """Return what embeds images with a bundle that makes vectors, of those that read no texts too."""
    return ImageRunner(bundle, settings) if bundle.manifest.image_vectors else runner_of(bundle, settings)


def measure_embeddings(
    parent: EmbeddingRunner, variant: EmbeddingRunner, evaluation: Evaluation, progress: Progress
) -> Measured:
    """Return how a variant embeds beside its parent.

    Accuracy over "all" counts recall@1 and zero-shot answers; recall@5 stands beside it. Where no answer counts as
    right, captions are embedded and not searched for.
    """
    comparison = _Comparison(parent, variant, has_accuracy=not evaluation.no_accuracy)
    if evaluation.captions:
        progress(f"embedding {len(evaluation.captions)} images and captions twice")
        comparison.add_captions(evaluation.captions)
    if evaluation.texts:
        comparison.add_texts(evaluation.texts)
    for name, labelled in evaluation.labelled.items():
        progress(f"classifying {len(labelled.samples)} images by {name}")
        comparison.add_labels(name, labelled)
    return comparison.measured()


def measure_images(parent: ImageVectors, variant: ImageVectors, evaluation: Evaluation, progress: Progress) -> Measured:
    """Return how a variant that reads no texts embeds beside its parent: captions and labels are left aside."""
    samples = images_of(evaluation)
    progress(f"embedding {len(samples)} images twice")
    likeness = Likeness()
    for pair in zip(_embed_images(parent, samples), _embed_images(variant, samples), strict=True):
        likeness.add(*pair)
    return Measured(likenesses=likenesses_of({"image": likeness}))


class _Comparison:
    def __init__(self, parent: EmbeddingRunner, variant: EmbeddingRunner, has_accuracy: bool) -> None:
        self._models, self._has_accuracy = (parent, variant), has_accuracy
        self._tasks: dict[str, PairedFlags] = {}
        self._likeness = {"image": Likeness(), "text": Likeness()}

    def add_captions(self, samples: Sequence[Caption]) -> None:
        """Compare images and captions, and search one by the other."""
        captions = [sample.caption for sample in samples]
        images = self._embed("image", [_embed_images(model, samples) for model in self._models])
        texts = self._embed("text", [list(model.embed_texts(captions)) for model in self._models])
        for k in _RECALLS:
            if k >= len(samples) or not self._has_accuracy:
                continue  # every target is among the nearest, or there are too few to search
            for way, queries, targets in (("image-to-text", images, texts), ("text-to-image", texts, images)):
                flags = (_finds(own, its, captions, k) for own, its in zip(queries, targets, strict=True))
                self._tasks[f"recall@{k}/{way}"] = PairedFlags(*flags)

    def add_texts(self, texts: Sequence[str]) -> None:
        """Compare texts that no image goes with."""
        self._embed("text", [list(model.embed_texts(list(texts))) for model in self._models])

    def add_labels(self, name: str, labelled: Labelled) -> None:
        """Compare labelled images and candidates, and classify one by the other."""
        images = self._embed("image", [_embed_images(model, labelled.samples) for model in self._models])
        texts = self._embed("text", [list(model.embed_texts(list(labelled.candidates))) for model in self._models])
        flags = (_classifies(own, candidates, labelled) for own, candidates in zip(images, texts, strict=True))
        self._tasks[f"zero-shot/{name}"] = PairedFlags(*flags)

    def measured(self) -> Measured:
        """Return all figures."""
        tasks = {name: pair.summary() for name, pair in self._tasks.items()}
        if counted := [pair for name, pair in self._tasks.items() if not name.startswith("recall@5/")]:
            parent = np.concatenate([pair.parent for pair in counted])
            tasks[ALL_TASKS] = PairedFlags(parent, np.concatenate([pair.variant for pair in counted])).summary()
        return Measured(
            tasks,
            likenesses=likenesses_of(self._likeness),
        )

    def _embed(self, kind: str, embeddings: list[list[Vectors]]) -> list[list[Vectors]]:
        for parent, variant in zip(*embeddings, strict=True):
            for pair in zip(np.atleast_2d(parent), np.atleast_2d(variant), strict=True):
                self._likeness[kind].add(*pair)
        return embeddings


def _embed_images(model: ImageVectors, samples: Sequence[Caption]) -> list[Vectors]:
    starts = range(0, len(samples), _IMAGES_AT_ONCE)
    batches = (samples[at : at + _IMAGES_AT_ONCE] for at in starts)
    return [vectors for batch in batches for vectors in model.embed_images([sample.image for sample in batch])]


def _similarities(queries: Embedded, targets: Embedded) -> Float64:
    """Return [queries, targets] how near each is to each."""
    return np.array([[similarity(query, target) for target in targets] for query in queries])


def _finds(queries: Embedded, targets: Embedded, captions: Sequence[str], k: int) -> Flags:
    """Return for each query whether a target of the same caption is among the k nearest: [n] bool."""
    nearest = np.argsort(-_similarities(queries, targets), axis=1, kind="stable")[:, :k]
    names = np.array(captions)
    return np.asarray((names[nearest] == names[:, None]).any(axis=1))


def _classifies(images: Embedded, candidates: Embedded, labelled: Labelled) -> Flags:
    """Return for each image whether its label is the nearest candidate: [n] bool."""
    chosen = np.array(labelled.candidates)[_similarities(images, candidates).argmax(axis=1)]
    return np.asarray(chosen == np.array([sample.caption for sample in labelled.samples]))
