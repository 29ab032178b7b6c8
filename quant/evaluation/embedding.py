"""A model that embeds on a file of samples: search both ways, ranked search, and zero-shot classification."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from bundle.errors import QuantizationError
from bundle.zero_shot import SLOT, label_text
from quant.evaluation.asking import RefusedError, Respondent, Vectors
from quant.evaluation.formats import SEARCHED
from quant.evaluation.pictures import Picture
from quant.evaluation.reading import SampleFile
from quant.evaluation.report import Marks
from quant.evaluation.sample import Sample
from quant.evaluation.scorers.ranking import hit_at, ndcg_at, recall_at
from quant.quality.measures import Float64

Progress = Callable[[str], None]
RECALLS = (1, 5, 10)
NDCG_AT = 10
_TOP_LABELS = (1, 5)
_AT_ONCE = 16
"""Inputs that are embedded together: a file never lies in memory whole, and our own server takes so many images."""
_QUERIES_AT_ONCE = 256
_IMAGE_TO_TEXT, _TEXT_TO_IMAGE = "image to text", "text to image"


async def embedded_marks(
    file: SampleFile, respondent: Respondent, templates: Sequence[str], progress: Progress
) -> list[Marks]:
    """Return what a model that embeds gets for samples.

    Args:
        file: Samples of the formats caption, label, or search with document.
        respondent: The model.
        templates: Texts that a label stands in; of several the mean vector counts (Radford et al. 2021, section 3.1.4).
        progress: Called with a line now and then.

    Raises:
        QuantizationError: The samples ask for answers, or the model does not take one of them.
    """
    samples, embedding = file.samples, _Embedding(respondent, progress)
    if samples[0].format in SEARCHED:
        return await _ranked(samples, embedding)
    if samples[0].format == "caption":
        return await _captioned(samples, embedding)
    if samples[0].format == "label":
        return await _classified(samples, file.labels, embedding, templates)
    raise QuantizationError(
        f"{samples[0].place} is of the format {samples[0].format}, which wants a model that answers; "
        f"{respondent.name} embeds. It reads caption, label, and search with document"
    )


class _Embedding:
    """Embeds in pieces, and says how far it is."""

    def __init__(self, respondent: Respondent, progress: Progress) -> None:
        self._respondent, self._progress = respondent, progress

    async def of(self, what: str, inputs: Sequence[str | Picture]) -> Vectors:
        """Return [n, E]."""
        found = []
        for start in range(0, len(inputs), _AT_ONCE):
            if start % (8 * _AT_ONCE) == 0:
                self._progress(f"embedding {what}: {start} of {len(inputs)}")
            piece = inputs[start : start + _AT_ONCE]
            try:
                data = [each if isinstance(each, str) else each.data() for each in piece]
                found.append(await self._respondent.embed(data))
            except RefusedError as error:
                raise QuantizationError(f"{what} {start + 1} to {start + len(piece)}: {error}") from error
        return np.concatenate(found)


async def _captioned(samples: Sequence[Sample], embedding: _Embedding) -> list[Marks]:
    """Return recall both ways; a caption that several images have is right for each of them."""
    images = dict(_pictures(samples))
    captions = list(dict.fromkeys(text for sample in samples for text in sample.answers))
    of_images = await embedding.of("images", list(images.values()))
    of_texts = await embedding.of("captions", captions)
    pairs = [(sample.shown.images[0].name, text) for sample in samples for text in sample.answers]
    texts_of: dict[str, dict[str, float]] = {}
    images_of: dict[str, dict[str, float]] = {}
    for name, text in pairs:
        texts_of.setdefault(name, {})[text] = 1.0
        images_of.setdefault(text, {})[name] = 1.0
    marks, ways = [], []
    for way, queries, targets, asked, names, relevant in (
        (_IMAGE_TO_TEXT, of_images, of_texts, list(images), captions, texts_of),
        (_TEXT_TO_IMAGE, of_texts, of_images, captions, list(images), images_of),
    ):
        for name, ranking in zip(asked, _rankings(queries, targets, names), strict=True):
            marks.append([hit_at(ranking, relevant[name], k) for k in RECALLS])
            ways.append(way)
    return _columns(np.array(marks), [f"recall@{k}" for k in RECALLS], ways)


async def _ranked(samples: Sequence[Sample], embedding: _Embedding) -> list[Marks]:
    """Return recall and nDCG of queries among all documents that the file names."""
    queries = [sample for sample in samples if sample.format == "search"]
    documents = {picture.name: picture for sample in samples for picture in sample.documents}
    inputs = [sample.question or sample.shown.images[0] for sample in queries]
    of_queries = await embedding.of("queries", inputs)
    of_documents = await embedding.of("documents", list(documents.values()))
    rows = []
    for sample, ranking in zip(queries, _rankings(of_queries, of_documents, list(documents)), strict=True):
        recalls = [recall_at(ranking, sample.relevant, k) for k in RECALLS]
        rows.append([*recalls, ndcg_at(ranking, sample.relevant, NDCG_AT)])
    names = [*(f"recall@{k}" for k in RECALLS), f"ndcg@{NDCG_AT}"]
    return _columns(np.array(rows), names, [sample.task for sample in queries])


async def _classified(
    samples: Sequence[Sample], labels: Sequence[str], embedding: _Embedding, templates: Sequence[str]
) -> list[Marks]:
    if len(labels) == 1:
        raise QuantizationError(f"every label is {labels[0]!r}; zero-shot needs two or more to choose from")
    if without := [template for template in templates if SLOT not in template]:
        raise QuantizationError(f"the template {without[0]!r} has no {SLOT} for the label")
    of_labels = sum(
        [await embedding.of("labels", [label_text(each, label) for label in labels]) for each in templates],
        np.zeros(1, np.float32),
    )
    of_labels /= np.linalg.norm(of_labels, axis=1, keepdims=True)
    of_images = await embedding.of("images", [picture for _, picture in _pictures(samples)])
    rows = []
    for sample, ranking in zip(samples, _rankings(of_images, of_labels, labels), strict=True):
        rows.append([hit_at(ranking, {sample.answers[0]: 1.0}, k) for k in _TOP_LABELS])
    names = [f"top-{k}" for k in _TOP_LABELS]
    return _columns(np.array(rows), names, [sample.task for sample in samples])


def _rankings(queries: Vectors, targets: Vectors, names: Sequence[str]) -> Iterator[list[str]]:
    """Yield for each query the names of all targets that a measure may look at, the nearest first."""
    most = min(max(*RECALLS, NDCG_AT), len(names))
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        near = queries[start : start + _QUERIES_AT_ONCE] @ targets.T
        for row in np.argsort(-near, axis=1, kind="stable")[:, :most]:
            yield [names[place] for place in row]


def _columns(values: Float64, names: Sequence[str], tasks: Sequence[str]) -> list[Marks]:
    return [Marks(name, tasks, values[:, at], [1] * len(tasks)) for at, name in enumerate(names)]


def _pictures(samples: Sequence[Sample]) -> Iterator[tuple[str, Picture]]:
    for sample in samples:
        if len(sample.shown.images) != 1:
            raise QuantizationError(
                f"{sample.place} shows {len(sample.shown.images)} images; a model that embeds takes one"
            )
        yield sample.shown.images[0].name, sample.shown.images[0]
