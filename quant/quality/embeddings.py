"""How a dual-encoder variant embeds beside its parent: cosines, recall both ways, zero-shot accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from quant.quality.evaluation import ALL_TASKS, Caption, Evaluation, Flags, Labelled, Measured, PairedFlags, Progress
from quant.quality.measures import Likeness, likenesses_of
from runtime.encoders import Vectors

_RECALLS = (1, 5)
_IMAGES_AT_ONCE = 32
"""Images that are open together: a large file of samples never lies in memory whole."""


class EmbeddingRunner(Protocol):
    """What is asked of a model; `runtime.one_request.DualEncoderRunner` does it."""

    def embed_images(self, images: Sequence[Image.Image]) -> Vectors:
        """Return [n, E], rows of length 1."""

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Return [n, E], rows of length 1."""


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


class _Comparison:
    def __init__(self, parent: EmbeddingRunner, variant: EmbeddingRunner, has_accuracy: bool) -> None:
        self._models, self._has_accuracy = (parent, variant), has_accuracy
        self._tasks: dict[str, PairedFlags] = {}
        self._likeness = {"image": Likeness(), "text": Likeness()}

    def add_captions(self, samples: Sequence[Caption]) -> None:
        """Compare images and captions, and search one by the other."""
        captions = [sample.caption for sample in samples]
        images = self._embed("image", [_embed_images(model, samples) for model in self._models])
        texts = self._embed("text", [model.embed_texts(captions) for model in self._models])
        for k in _RECALLS:
            if k >= len(samples) or not self._has_accuracy:
                continue  # every target is among the nearest, or there are too few to search
            for way, queries, targets in (("image-to-text", images, texts), ("text-to-image", texts, images)):
                flags = (_finds(own, its, captions, k) for own, its in zip(queries, targets, strict=True))
                self._tasks[f"recall@{k}/{way}"] = PairedFlags(*flags)

    def add_texts(self, texts: Sequence[str]) -> None:
        """Compare texts that no image goes with."""
        self._embed("text", [model.embed_texts(list(texts)) for model in self._models])

    def add_labels(self, name: str, labelled: Labelled) -> None:
        """Compare labelled images and candidates, and classify one by the other."""
        images = self._embed("image", [_embed_images(model, labelled.samples) for model in self._models])
        texts = self._embed("text", [model.embed_texts(list(labelled.candidates)) for model in self._models])
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

    def _embed(self, kind: str, embeddings: list[Vectors]) -> list[Vectors]:
        for pair in zip(*embeddings, strict=True):
            self._likeness[kind].add(*pair)
        return embeddings


def _embed_images(model: EmbeddingRunner, samples: Sequence[Caption]) -> Vectors:
    starts = range(0, len(samples), _IMAGES_AT_ONCE)
    batches = (samples[at : at + _IMAGES_AT_ONCE] for at in starts)
    return np.concatenate([model.embed_images([sample.image for sample in batch]) for batch in batches])


def _finds(queries: Vectors, targets: Vectors, captions: Sequence[str], k: int) -> Flags:
    """Return for each query whether a target of the same caption is among the k nearest: [n] bool from two [n, E]."""
    nearest = np.argsort(-(queries @ targets.T), axis=1, kind="stable")[:, :k]
    names = np.array(captions)
    return np.asarray((names[nearest] == names[:, None]).any(axis=1))


def _classifies(images: Vectors, candidates: Vectors, labelled: Labelled) -> Flags:
    """Return for each image whether its label is the nearest candidate: [n] bool."""
    chosen = np.array(labelled.candidates)[(images @ candidates.T).argmax(axis=1)]
    return np.asarray(chosen == np.array([sample.caption for sample in labelled.samples]))
