"""`POST /v1/classify`: images scored against labels that the caller brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from fastapi.responses import Response

from serving.api.disconnect import contained, until_disconnect
from serving.api.images import image_part
from serving.api.piecewise import in_pieces, json_answer, written, written_list, written_object
from serving.api.schemas import ClassifyBody
from serving.api.service import Service, count_prompt, new_id
from serving.protocol import ClassifyRequest

_LABEL_US = 3
"""That a label and its score take to be written."""


def classify_router(service: Service) -> APIRouter:
    """Return the classification route."""
    router = APIRouter(tags=["classify"])

    @router.post("/v1/classify")
    async def classify(request: Request) -> Response:
        """Score images against labels, best label first."""
        deadline = service.deadline(request)
        asked = await service.read(request, deadline, ClassifyBody, partial(_asked, service))
        model = await service.choose(request, asked.model, "dual-encoder")
        with service.metrics.one_answer(model):
            work = deadline.finish(_answered(service, request, asked, model))
            return await until_disconnect(request.receive, work)

    return router


def _asked(service: Service, body: ClassifyBody) -> ClassifyRequest:
    images = tuple(
        image_part(image.image_url.url, f"images.{index}.image_url.url", service.settings.max_image_bytes, image.region)
        for index, image in enumerate(body.images)
    )
    return ClassifyRequest(new_id("clsf"), body.model or "", images, tuple(body.labels), body.templates)


async def _answered(service: Service, request: Request, asked: ClassifyRequest, model: str) -> Response:
    result = await contained(service.client.classify(replace(asked, model=model)))
    count_prompt(service, request, result.prompt_tokens)
    rows = list(enumerate(result.scores))
    data = await in_pieces(service, partial(_item, asked.labels), rows, lambda row: _LABEL_US * row[1].size)
    head = {"object": "list", "model": asked.model or model}
    usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    return json_answer(written_object(head, "data", written_list(data), {"usage": usage}))


def _item(labels: Sequence[str], item: tuple[int, npt.NDArray[np.float32]]) -> bytes:
    index, scores = item
    order = np.argsort(-scores, kind="stable")
    ranked = [{"label": labels[place], "score": float(scores[place])} for place in order]
    return written({"object": "classification", "index": index, "labels": ranked})
