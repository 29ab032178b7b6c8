"""`POST /v1/embeddings`: texts and images to vectors of unit length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from fastapi.responses import Response

from bundle.adapters import split_task
from bundle.errors import ParameterError
from bundle.manifest import EMBEDDING_TASKS, InputType
from serving.api.disconnect import contained, until_disconnect
from serving.api.piecewise import in_pieces, json_answer, written_array, written_list, written_object
from serving.api.schemas import EmbeddingRequest
from serving.api.service import Service, check_images, count_prompt, new_id, or_cut
from serving.protocol import EmbedRequest


def embeddings_router(service: Service) -> APIRouter:
    """Return the embedding route."""
    router = APIRouter(tags=["embeddings"])

    @router.post("/v1/embeddings")
    async def embed(request: Request) -> Response:
        """Embed texts and images into the space that they share."""
        deadline = service.deadline(request)
        asked = await service.read(request, deadline, EmbeddingRequest, partial(_asked, service))
        model = await service.choose(request, asked.request.model, *EMBEDDING_TASKS)
        with service.metrics.one_answer(model):
            work = deadline.finish(_answered(service, request, asked, model))
            return await until_disconnect(request.receive, work)

    return router


@dataclass(frozen=True)
class _Asked:
    """What a body asks for.

    Attributes:
        request: For the engine.
        encoding: Of the vectors in the answer.
    """

    request: EmbedRequest
    encoding: str


def embed_request(service: Service, body: EmbeddingRequest, kind: str) -> EmbedRequest:
    """Return what a body asks of the engine, under an id of that kind.

    Raises:
        ParameterError: An input is none, or they hold more images than a request may.
    """
    source = "input" if body.messages is None else "messages"
    parts = tuple(service.embedded(content, f"{source}.{index}") for index, content in enumerate(body.contents()))
    check_images(service, parts, source)
    return EmbedRequest(
        new_id(kind),
        body.model or "",
        parts,
        body.dimensions,
        body.truncate_prompt_tokens,
        _of_all(body.input_type, len(parts)),
        body.instruction,
        granularity="token" if body.return_multivector else "own",
    )


def _asked(service: Service, body: EmbeddingRequest) -> _Asked:
    request = embed_request(service, body, "embd")
    if body.task is not None:
        task, kind = split_task(body.task)
        if kind is not None and body.input_type not in (None, kind):
            raise ParameterError(
                f"task {body.task!r:.80} says that inputs are of the type {kind}, and input_type {body.input_type}; "
                "send one of the two",
                "input_type",
            )
        request = replace(request, task=task, input_types=_of_all(kind or body.input_type, len(request.inputs)))
    return _Asked(request, body.encoding_format or "float")


def _of_all(kind: InputType | None, num_inputs: int) -> tuple[InputType, ...]:
    return () if kind is None else (kind,) * num_inputs


async def _answered(service: Service, request: Request, asked: _Asked, model: str) -> Response:
    embedded = contained(service.client.embed(replace(asked.request, model=model)))
    result = await or_cut(embedded, asked.request.truncate_tokens)
    count_prompt(service, request, result.prompt_tokens)
    items = list(enumerate(result.embeddings))
    data = await in_pieces(service, partial(_item, asked.encoding), items, lambda item: item[1].size)
    head = {"object": "list", "model": asked.request.model or model}
    usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    return json_answer(written_object(head, "data", written_list(data), {"usage": usage}))


def _item(encoding: str, item: tuple[int, npt.NDArray[np.float32]]) -> bytes:
    """Return one embedding; several vectors of one input stand under the name that Jina's clients know."""
    index, vectors = item
    head = {"object": "embedding", "index": index}
    if vectors.ndim == 1:
        return written_object(head, "embedding", written_array(vectors, encoding))
    return written_object(head, "embeddings", written_list(written_array(row, encoding) for row in vectors))
