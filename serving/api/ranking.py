"""`POST /v1/rerank` and `POST /v1/score`: how near texts and images are to each other, by a model's vectors.

A score is the dot product of two unit vectors, between -1 and 1; of a model with a vector for every token the late
interaction of both inputs, between minus and plus the number of the query's tokens; of a cross-encoder, which reads a
text and an image together, between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, model_validator

from bundle.errors import ParameterError
from bundle.manifest import RANKING_TASKS, InputType
from bundle.similarity import Vectors, similarity
from serving.api.contents import JoinedContent, Part, TextContent
from serving.api.deadline import Deadline
from serving.api.disconnect import contained, until_disconnect
from serving.api.fields import Name, Off, Strict, Text, at_most
from serving.api.images import image_part
from serving.api.piecewise import in_pieces
from serving.api.schemas import MostTokens, NonEmptyText
from serving.api.service import Service, check_images, count_prompt, new_id, or_cut
from serving.protocol import EmbedInput, EmbedRequest, ScoreRequest, TextPart


class TextDocument(Strict):
    """A text, as Jina and Cohere write it."""

    text: NonEmptyText


class ImageDocument(Strict):
    """An image as Jina writes it: a data URL."""

    image: str


Document = NonEmptyText | TextDocument | ImageDocument | Part | JoinedContent
_AtMostInputs = at_most("max_inputs", "inputs")
Documents = Annotated[list[Document], Field(min_length=1, fail_fast=True), _AtMostInputs]


class RerankBody(Strict):
    """The body of `POST /v1/rerank`, as Jina, Cohere and vLLM take it.

    `return_documents` is true where it is left out. `model` may be left out where only one model embeds.
    """

    model: Name | None = None
    query: Document
    documents: Documents
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool | None = None
    user: Text | None = None
    truncate_prompt_tokens: MostTokens | None = None
    instruction: NonEmptyText | None = None
    task: Name | None = None
    max_chunks_per_doc: Off = None
    max_tokens_per_doc: Off = None


class ScoreBody(Strict):
    """The body of `POST /v1/score`, as vLLM takes it: one with each of several, or pairs of as many."""

    model: Name | None = None
    text_1: Document | Documents
    text_2: Document | Documents
    user: Text | None = None
    truncate_prompt_tokens: MostTokens | None = None
    instruction: NonEmptyText | None = None
    task: Name | None = None

    @model_validator(mode="after")
    def _check_pairs(self) -> ScoreBody:
        num_1, num_2 = len(_listed(self.text_1)), len(_listed(self.text_2))
        if num_1 not in (1, num_2):
            raise ParameterError(f"text_1 holds {num_1} and text_2 {num_2}; send one in text_1, or as many", "text_1")
        return self


@dataclass(frozen=True)
class _Asked:
    """What a body asks for.

    Attributes:
        request: All of its inputs.
        num_first: How many of them come first, each for itself, and are held against the others.
        documents: As they are told again; None: they are not.
        top_n: Of the results.
    """

    request: EmbedRequest
    num_first: int
    documents: list[dict[str, Any]] | None = None
    top_n: int | None = None


Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Scored:
    """What came of it.

    Attributes:
        model: As the answer tells it.
        scores: [n].
        num_tokens: That were read.
    """

    model: str
    scores: Scores
    num_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        """As the answer tells it."""
        return {"prompt_tokens": self.num_tokens, "total_tokens": self.num_tokens}


def ranking_router(service: Service) -> APIRouter:
    """Return both routes."""
    router = APIRouter(tags=["ranking"])

    @router.post("/v1/rerank")
    async def rerank(request: Request) -> Response:
        """Order texts and images by their nearness to a query, the nearest first."""
        deadline = service.deadline(request)
        asked = await service.read(request, deadline, RerankBody, partial(_to_rank, service))
        found = await _scored(service, request, deadline, asked)
        order = np.argsort(-found.scores, kind="stable")[: asked.top_n]
        results = [_result(int(place), float(found.scores[place]), asked.documents) for place in order]
        head = {"id": asked.request.request_id, "model": found.model}
        return JSONResponse({**head, "results": results, "usage": found.usage})

    @router.post("/v1/score")
    async def score(request: Request) -> Response:
        """Tell how near texts and images are to each other."""
        deadline = service.deadline(request)
        asked = await service.read(request, deadline, ScoreBody, partial(_to_score, service))
        found = await _scored(service, request, deadline, asked)
        data = [{"index": index, "object": "score", "score": float(each)} for index, each in enumerate(found.scores)]
        head = {"id": asked.request.request_id, "object": "list", "created": service.started_s, "model": found.model}
        return JSONResponse({**head, "data": data, "usage": found.usage})

    return router


async def _scored(service: Service, request: Request, deadline: Deadline, asked: _Asked) -> _Scored:
    """Return what the model makes of the pairs: of each input's vectors, or of both inputs read together."""
    model = await service.choose(request, asked.request.model, *RANKING_TASKS)
    reads_pairs = (await service.card(model)).task == "cross-encoder"
    work = _read_together(service, model, asked) if reads_pairs else _compared(service, model, asked)
    with service.metrics.one_answer(model):
        scores, num_tokens = await until_disconnect(
            request.receive, deadline.finish(or_cut(contained(work), asked.request.truncate_tokens))
        )
    count_prompt(service, request, num_tokens)
    return _Scored(asked.request.model or model, scores, num_tokens)


async def _compared(service: Service, model: str, asked: _Asked) -> tuple[Scores, int]:
    """Return [n] how near each of the others is to the only first one, or to its own, and the tokens of all."""
    result = await service.client.embed(replace(asked.request, model=model))
    num_first = asked.num_first
    first, others = result.embeddings[:num_first], result.embeddings[num_first:]
    pairs = [(first[place % num_first], each) for place, each in enumerate(others)]
    scores = await in_pieces(service, lambda pair: similarity(*pair), pairs, _cost_us)
    return np.array(scores), result.prompt_tokens


def _cost_us(pair: tuple[Vectors, Vectors]) -> float:
    """Return about how long two inputs take to be compared: 10 microseconds, and one for 5,000 products."""
    first, second = pair
    return 10 + (first.size * len(second) / 5_000 if second.ndim > 1 else 0)


async def _read_together(service: Service, model: str, asked: _Asked) -> tuple[Scores, int]:
    """Return [n] a cross-encoder's scores, and the tokens of the texts.

    Raises:
        ParameterError: A task, which it has no adapter for.
    """
    embedded = asked.request
    if embedded.task is not None:
        raise ParameterError(f"task: {model} is a cross-encoder, which has no adapters; leave it out", "task")
    first, others = embedded.inputs[: asked.num_first], embedded.inputs[asked.num_first :]
    pairs = tuple((first[place % asked.num_first], each) for place, each in enumerate(others))
    told = embedded.instruction
    score = ScoreRequest(embedded.request_id, model, pairs, embedded.truncate_tokens, instruction=told)
    result = await service.client.score(score)
    return np.asarray(result.scores, np.float64), result.prompt_tokens


def _result(index: int, score: float, documents: Sequence[dict[str, Any]] | None) -> dict[str, Any]:
    told = {"index": index, "relevance_score": score}
    return told if documents is None else {**told, "document": documents[index]}


def _to_rank(service: Service, body: RerankBody) -> _Asked:
    parts = [_part(service, body.query, "query")]
    parts += [_part(service, each, f"documents.{index}") for index, each in enumerate(body.documents)]
    check_images(service, parts, "documents")
    told = None if body.return_documents is False else [_told(each) for each in body.documents]
    return _Asked(_request("rerank", body, parts, 1), 1, told, body.top_n)


def _to_score(service: Service, body: ScoreBody) -> _Asked:
    first, others = _listed(body.text_1), _listed(body.text_2)
    parts = [_part(service, each, f"text_1.{index}") for index, each in enumerate(first)]
    parts += [_part(service, each, f"text_2.{index}") for index, each in enumerate(others)]
    check_images(service, parts, "text_2")
    return _Asked(_request("score", body, parts, len(first)), len(first))


def _request(prefix: str, body: RerankBody | ScoreBody, parts: Sequence[EmbedInput], num_first: int) -> EmbedRequest:
    """Return what is embedded: those that come first are queries, and the others documents."""
    kinds: list[InputType] = ["query" if place < num_first else "document" for place in range(len(parts))]
    return EmbedRequest(
        new_id(prefix),
        body.model or "",
        tuple(parts),
        truncate_tokens=body.truncate_prompt_tokens,
        input_types=tuple(kinds),
        instruction=body.instruction,
        task=body.task,
    )


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def _part(service: Service, document: Any, param: str) -> EmbedInput:
    if isinstance(document, ImageDocument):
        return image_part(document.image, f"{param}.image", service.settings.max_image_bytes)
    return TextPart(document.text) if isinstance(document, TextDocument) else service.embedded(document, param)


def _told(document: Any) -> dict[str, Any]:
    """Return a document as an answer tells it again: its texts; of an image, only that it is one."""
    if isinstance(document, JoinedContent):
        return {"content": [_told(each) for each in document.content]}
    if isinstance(document, str):
        return {"text": document}
    return {"text": document.text} if isinstance(document, (TextDocument, TextContent)) else {"type": "image"}
