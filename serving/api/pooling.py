"""`POST /pooling`, as vLLM has it: what a model makes of inputs before anything is done with it."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from fastapi.responses import Response

from bundle.errors import ParameterError
from bundle.manifest import RANKING_TASKS
from serving.api.disconnect import contained, until_disconnect
from serving.api.embeddings import embed_request
from serving.api.fields import Off
from serving.api.piecewise import in_pieces, json_answer, written_array, written_list, written_object
from serving.api.schemas import EmbeddingRequest
from serving.api.service import Service, count_prompt, or_cut
from serving.protocol import EmbedInput, EmbedRequest, JoinedPart, ScoreRequest
from serving.protocol.embedding import Granularity

PoolingTask = Literal["embed", "token_embed", "classify", "score"]
_GRANULARITIES: dict[str | None, Granularity] = {"embed": "input", "token_embed": "token"}
_OF_PAIRS = ("classify", "score")
Pooled = tuple[list[npt.NDArray[np.float32]], int]
"""Of each input an array, and the tokens of all."""


class PoolingBody(EmbeddingRequest):
    """The body of `POST /pooling`, as vLLM takes it: that of `/v1/embeddings`, and two fields.

    `task`: `embed` (a vector of each input), `token_embed` (one of each of its tokens), `classify` or `score` (a
    cross-encoder's score of an input of two parts, `{"content": [{"type": "text", ...}, {"type": "image_url", ...}]}`);
    what the model does by itself where it is left out. `use_activation` false: vectors are not brought to unit length,
    and scores are of any size. Of a model with adapters, the first embeds: here `task` is another thing.
    """

    task: PoolingTask | None = None
    use_activation: bool | None = None
    return_multivector: Off = None


@dataclass(frozen=True)
class _Asked:
    """What a body asks for.

    Attributes:
        request: For a model that embeds; the inputs are a cross-encoder's too.
        task: None: the model's own.
        encoding: Of the arrays in the answer.
    """

    request: EmbedRequest
    task: PoolingTask | None
    encoding: str


def pooling_router(service: Service) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["embeddings"])

    @router.post("/pooling")
    async def pool(request: Request) -> Response:
        """Return vectors of inputs or of their tokens, or scores of pairs, raw where that is asked for."""
        deadline = service.deadline(request)
        asked = await service.read(request, deadline, PoolingBody, partial(_asked, service))
        model = await service.choose(request, asked.request.model, *RANKING_TASKS)
        reads_pairs = (await service.card(model)).task == "cross-encoder"
        work = _scored(service, model, asked) if reads_pairs else _embedded(service, model, asked)
        with service.metrics.one_answer(model):
            answer = deadline.finish(_answered(service, request, asked, model, work))
            return await until_disconnect(request.receive, answer)

    return router


def _asked(service: Service, body: PoolingBody) -> _Asked:
    request = replace(
        embed_request(service, body, "pool"),
        is_raw=body.use_activation is False,
        granularity=_GRANULARITIES.get(body.task, "own"),
    )
    return _Asked(request, body.task, body.encoding_format or "float")


async def _embedded(service: Service, model: str, asked: _Asked) -> Pooled:
    """Return the vectors of each input.

    Raises:
        ParameterError: A task of cross-encoders.
    """
    if asked.task in _OF_PAIRS:
        raise ParameterError(f"task {asked.task}: {model} makes vectors; it has embed and token_embed", "task")
    result = await service.client.embed(replace(asked.request, model=model))
    return list(result.embeddings), result.prompt_tokens


async def _scored(service: Service, model: str, asked: _Asked) -> Pooled:
    """Return the score [1] of each input, which is a pair.

    Raises:
        ParameterError: A task of models that embed, a field of theirs, or an input that is no pair.
    """
    request = asked.request
    if asked.task in ("embed", "token_embed"):
        raise ParameterError(f"task {asked.task}: {model} is a cross-encoder; it has classify and score", "task")
    unread = {"dimensions": request.dimensions, "input_type": request.input_types}
    for field in (name for name, value in unread.items() if value):
        raise ParameterError(f"{field}: {model} is a cross-encoder, which has no such thing; leave it out", field)
    pairs = tuple(_pair(part) for part in request.inputs)
    score = ScoreRequest(request.request_id, model, pairs, request.truncate_tokens, request.is_raw, request.instruction)
    result = await service.client.score(score)
    return [np.array([each], np.float32) for each in result.scores], result.prompt_tokens


def _pair(part: EmbedInput) -> tuple[EmbedInput, EmbedInput]:
    if isinstance(part, JoinedPart) and len(part.parts) == 2:
        return part.parts[0], part.parts[1]
    raise ParameterError(
        'a cross-encoder reads inputs of two parts: {"content": [query, document]}, each a text or an image', "input"
    )


async def _answered(
    service: Service, request: Request, asked: _Asked, model: str, work: Coroutine[Any, Any, Pooled]
) -> Response:
    arrays, num_tokens = await or_cut(contained(work), asked.request.truncate_tokens)
    count_prompt(service, request, num_tokens)
    items = list(enumerate(arrays))
    data = await in_pieces(service, partial(_item, asked.encoding), items, lambda item: item[1].size)
    head = {"id": asked.request.request_id, "object": "list", "created": service.started_s}
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    named = {**head, "model": asked.request.model or model}
    return json_answer(written_object(named, "data", written_list(data), {"usage": usage}))


def _item(encoding: str, item: tuple[int, npt.NDArray[np.float32]]) -> bytes:
    """Return numbers, or the base64 of all of them, row behind row."""
    index, array = item
    return written_object({"index": index, "object": "pooling"}, "data", written_array(array, encoding))
