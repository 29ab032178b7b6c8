"""`POST /v1/classify`: images scored against labels that the caller brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serving.api.disconnect import contained, until_disconnect
from serving.api.images import image_part
from serving.api.schemas import ClassifyBody
from serving.api.service import Service, count_prompt, new_id
from serving.protocol import ClassifyRequest


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
            work = deadline.finish(contained(service.client.classify(replace(asked, model=model))))
            result = await until_disconnect(request.receive, work)
        count_prompt(service, request, result.prompt_tokens)
        data = [_item(index, row, asked.labels) for index, row in enumerate(result.scores)]
        usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
        return JSONResponse({"object": "list", "model": asked.model or model, "data": data, "usage": usage})

    return router


def _asked(service: Service, body: ClassifyBody) -> ClassifyRequest:
    images = tuple(
        image_part(image.image_url.url, f"images.{index}.image_url.url", service.settings.max_image_bytes, image.region)
        for index, image in enumerate(body.images)
    )
    return ClassifyRequest(new_id("clsf"), body.model or "", images, tuple(body.labels), body.templates)


def _item(index: int, scores: npt.NDArray[np.float32], labels: Sequence[str]) -> dict[str, Any]:
    order = np.argsort(-scores, kind="stable")
    ranked = [{"label": labels[place], "score": float(scores[place])} for place in order]
    return {"object": "classification", "index": index, "labels": ranked}
