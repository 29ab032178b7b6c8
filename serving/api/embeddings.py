"""`POST /v1/embeddings`: texts and images to vectors of unit length."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serving.api.disconnect import until_disconnect
from serving.api.schemas import EmbeddingRequest
from serving.api.service import Service, check_count, new_id
from serving.protocol import EmbedRequest, ImagePart


def embeddings_router(service: Service) -> APIRouter:
    """Return the embedding route."""
    router = APIRouter(tags=["embeddings"])

    @router.post("/v1/embeddings")
    async def embed(body: EmbeddingRequest, request: Request) -> Response:
        """Embed texts and images into the space that they share."""
        model = await service.choose(request, body.model, "dual-encoder")
        source = "input" if body.messages is None else "messages"
        contents = body.contents()
        check_count(len(contents), service.settings.max_inputs, source, "inputs")
        parts = tuple(service.part(content, f"{source}.{index}") for index, content in enumerate(contents))
        check_count(sum(isinstance(p, ImagePart) for p in parts), service.settings.max_images, source, "images")
        wanted = EmbedRequest(new_id("embd"), model, parts)
        with service.metrics.one_answer(model):
            result = await until_disconnect(request.receive, service.client.embed(wanted))
        service.metrics.count_prompt(model, result.prompt_tokens)
        data = [_item(index, row, body.encoding_format) for index, row in enumerate(result.embeddings)]
        usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
        return JSONResponse({"object": "list", "model": model, "data": data, "usage": usage})

    return router


def _item(index: int, row: npt.NDArray[np.float32], encoding: str) -> dict[str, Any]:
    """Return one embedding: a list of numbers, or the base64 of its little-endian float32 bytes."""
    raw = row.astype("<f4", copy=False)
    embedding = raw.tolist() if encoding == "float" else base64.b64encode(raw.tobytes()).decode()
    return {"object": "embedding", "index": index, "embedding": embedding}
