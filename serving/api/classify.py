"""`POST /v1/classify`: images scored against labels that the caller brings."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serving.api.disconnect import until_disconnect
from serving.api.images import image_part
from serving.api.schemas import ClassifyBody
from serving.api.service import Service, check_count, new_id
from serving.protocol import ClassifyRequest


def classify_router(service: Service) -> APIRouter:
    """Return the classification route."""
    router = APIRouter(tags=["classify"])

    @router.post("/v1/classify")
    async def classify(body: ClassifyBody, request: Request) -> Response:
        """Score images against labels, best label first."""
        model = await service.choose(request, body.model, "dual-encoder")
        limits = service.settings
        check_count(len(body.images), limits.max_images, "images", "images")
        check_count(len(body.labels), limits.max_labels, "labels", "labels")
        images = tuple(
            image_part(image.image_url.url, f"images.{index}.image_url.url", limits.max_image_bytes)
            for index, image in enumerate(body.images)
        )
        wanted = ClassifyRequest(new_id("clsf"), model, images, tuple(body.labels), body.prompt_template)
        with service.metrics.one_answer(model):
            result = await until_disconnect(request.receive, service.client.classify(wanted))
        service.metrics.count_prompt(model, result.prompt_tokens)
        data = [_item(index, row, body.labels) for index, row in enumerate(result.scores)]
        usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
        return JSONResponse({"object": "list", "model": model, "data": data, "usage": usage})

    return router


def _item(index: int, scores: npt.NDArray[np.float32], labels: list[str]) -> dict[str, Any]:
    order = np.argsort(-scores, kind="stable")
    ranked = [{"label": labels[place], "score": float(scores[place])} for place in order]
    return {"object": "classification", "index": index, "labels": ranked}
