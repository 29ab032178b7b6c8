"""What the routes of vectors, orders, scores and labels answer."""

from __future__ import annotations

from typing import Literal

from serving.api.answers.answer import Answer, TextUsage


class Embedding(Answer):
    """A vector of unit length: numbers, or the base64 of its little-endian float32 bytes."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class TokenEmbeddings(Answer):
    """A vector of unit length for every token of an input, each as an `Embedding` has its own."""

    object: Literal["embedding"]
    index: int
    embeddings: list[list[float] | str]


class EmbeddingList(Answer):
    """What each input became, in their order."""

    object: Literal["list"]
    model: str
    data: list[Embedding | TokenEmbeddings]
    usage: TextUsage


class Pooled(Answer):
    """A vector, one for each token, or a score [1]: numbers, or the base64 of their float32 bytes, row behind row."""

    index: int
    object: Literal["pooling"]
    data: list[float] | list[list[float]] | str


class PoolingList(Answer):
    """What each input became, in their order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Pooled]
    usage: TextUsage


class RankedDocument(Answer):
    """A document again: its text, or that it is an image, or both of several parts."""

    text: str | None = None
    type: Literal["image"] | None = None
    content: list[RankedDocument] | None = None


class RankedResult(Answer):
    """How near a document is to the query, between -1 and 1, and its place among those that were sent."""

    index: int
    relevance_score: float
    document: RankedDocument | None = None


class Ranking(Answer):
    """Documents, the nearest first."""

    id: str
    model: str
    results: list[RankedResult]
    usage: TextUsage


class Score(Answer):
    """How near the two of a pair are, between -1 and 1."""

    index: int
    object: Literal["score"]
    score: float


class ScoreList(Answer):
    """One score per pair, in their order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: TextUsage


class LabelScore(Answer):
    """How well a label fits."""

    label: str
    score: float


class Classification(Answer):
    """An image's labels, the best first."""

    object: Literal["classification"]
    index: int
    labels: list[LabelScore]


class ClassificationList(Answer):
    """One classification per image, in their order."""

    object: Literal["list"]
    model: str
    data: list[Classification]
    usage: TextUsage
