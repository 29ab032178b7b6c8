"""`POST /v1/embeddings`: texts and images to vectors of unit length."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from bundle.adapters import split_task
from bundle.errors import ParameterError
from bundle.manifest import EMBEDDING_TASKS, InputType
from serving.api.disconnect import contained, until_disconnect
from serving.api.schemas import EmbeddingRequest
from serving.api.service import Service, check_images, count_prompt, new_id, or_cut
from serving.protocol import EmbedRequest, EmbedResult


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
            embedded = contained(service.client.embed(replace(asked.request, model=model)))
            work = deadline.finish(or_cut(embedded, asked.request.truncate_tokens))
            result = await until_disconnect(request.receive, work)
        return JSONResponse(_body(service, request, asked, result, asked.request.model or model))

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


def _body(service: Service, request: Request, asked: _Asked, result: EmbedResult, model: str) -> dict[str, Any]:
    count_prompt(service, request, result.prompt_tokens)
    data = [_item(index, row, asked.encoding) for index, row in enumerate(result.embeddings)]
    usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    return {"object": "list", "model": model, "data": data, "usage": usage}


def _item(index: int, vectors: npt.NDArray[np.float32], encoding: str) -> dict[str, Any]:
    """Return one embedding; several vectors of one input stand under the name that Jina's clients know."""
    item = {"object": "embedding", "index": index}
    if vectors.ndim == 1:
        return {**item, "embedding": _encoded(vectors, encoding)}
    return {**item, "embeddings": [_encoded(row, encoding) for row in vectors]}


def _encoded(vector: npt.NDArray[np.float32], encoding: str) -> list[float] | str:
    """Return a list of numbers, or the base64 of its little-endian float32 bytes."""
    raw = vector.astype("<f4", copy=False)
    return raw.tolist() if encoding == "float" else base64.b64encode(raw.tobytes()).decode()
