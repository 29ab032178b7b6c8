"""What the server says of itself: its models, whether it lives and is ready, its metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from serving.api.service import Service
from serving.protocol import ModelCard


def status_router(service: Service) -> APIRouter:
    """Return the routes that need no request body."""
    router = APIRouter(tags=["status"])

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the served models."""
        cards = await service.client.models()
        return {"object": "list", "data": [_card_body(card, service.started_s) for card in cards]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Describe one served model: weight schemes, bytes, quality gates."""
        return _card_body(await service.card(name), service.started_s)

    @router.head("/health/live", include_in_schema=False)
    @router.get("/health/live")
    async def live() -> Response:
        """Answer 200 unless only a restart helps."""
        health = await service.client.health()
        return _health(health.is_alive, "live", health.reason)

    @router.head("/health/ready", include_in_schema=False)
    @router.get("/health/ready")
    async def ready() -> Response:
        """Answer 200 when requests can be served now."""
        health = await service.client.health()
        return _health(health.is_ready, "ready", health.reason)

    @router.get("/metrics")
    async def metrics() -> Response:
        """Return the counters in Prometheus' text format."""
        service.metrics.gauges.values = (await service.client.health()).model_gauges
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return router


def _card_body(card: ModelCard, created_s: int) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": created_s,
        "owned_by": "pocketvlm",
        "task": card.task,
        "model_type": card.model_type,
        "schemes": card.schemes,
        "kv_cache": card.kv_cache,
        "weight_bytes": card.weight_bytes,
        "context_tokens": card.context_tokens,
        "gated": card.is_gated,
        "gates": [gate.model_dump() for gate in card.gates],
        "unmeasured": [each.model_dump() for each in card.unmeasured],
    }


def _health(is_well: bool, word: str, reason: str) -> Response:
    if is_well:
        return JSONResponse({"status": word})
    return JSONResponse({"status": f"not {word}", "reason": reason}, 503)
