"""What the server says of itself: its models, whether it lives and is ready, its metrics."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from bundle.frames.table import LAYOUTS
from bundle.machine import own_version
from bundle.manifest import ANSWERING_TASKS, EMBEDDING_TASKS, RANKING_TASKS
from serving.api.service import Service
from serving.protocol import ModelCard, found_card


def status_router(service: Service) -> APIRouter:
    """Return the routes that need no request body."""
    router = APIRouter(tags=["status"])

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the served models."""
        cards = await service.client.models()
        meant = {alias: found_card(cards, name) for alias, name in service.settings.aliases.items()}
        named = {**{card.name: card for card in cards}, **{alias: card for alias, card in meant.items() if card}}
        return {"object": "list", "data": [card_body(service, name, card) for name, card in named.items()]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Describe one served model: weight schemes, bytes, quality gates."""
        return card_body(service, name, await service.card(name))

    @router.get("/version")
    async def version() -> dict[str, str]:
        """Return the server's version, as vLLM does."""
        return {"version": own_version()}

    @router.get("/v1/status")
    async def status() -> dict[str, Any]:
        """Tell what every engine is doing: slots, rows of the cache, who waits, memory; `pocketvlm top` asks it."""
        health, engines = await service.client.health(), await service.client.status()
        return {
            "object": "status",
            "server": "pocketvlm",
            "version": own_version(),
            "uptime_s": round(time.time() - service.started_s, 1),
            "is_ready": health.is_ready,
            "reason": health.reason,
            "models": [
                {
                    **_told_of(card),
                    "engines": {name: asdict(each) for name, each in engines.get(card.name, {}).items()},
                }
                for card in await service.client.models()
                if card.parent is None
            ],
        }

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
        return Response(await exposition_of(service), media_type=CONTENT_TYPE_LATEST)

    return router


async def exposition_of(service: Service) -> bytes:
    """Return an application's own metrics, and what its client tells, in Prometheus' text format."""
    service.metrics.tell(await service.client.health(), await service.client.models())
    return service.metrics.exposition()


def _told_of(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.name,
        "task": card.task,
        "model_type": card.model_type,
        "weight_bytes": card.weight_bytes,
        "context_tokens": card.context_tokens,
        "kv_cache": card.kv_cache,
        "adapters": card.adapters,
    }


def card_body(service: Service, name: str, card: ModelCard) -> dict[str, Any]:
    """Return what is told of a served model under one of its names."""
    limits = service.settings
    is_vlm = card.task in ANSWERING_TASKS
    converses = is_vlm and not card.takes_one_message
    return {
        "id": name,
        "object": "model",
        "created": service.started_s,
        "owned_by": "pocketvlm",
        "root": card.name,
        "parent": card.parent,
        "max_model_len": card.context_tokens,
        "task": card.task,
        "model_type": card.model_type,
        "schemes": card.schemes,
        "kv_cache": card.kv_cache,
        "weight_bytes": card.weight_bytes,
        "context_tokens": card.context_tokens,
        "capabilities": {
            "chat": is_vlm,
            "completions": converses,
            "tools": converses,
            "structured_output": is_vlm,
            "video": converses,
            "images": card.takes_images,
            "embeddings": card.task in EMBEDDING_TASKS,
            "rerank": card.task in RANKING_TASKS,
            "classify": card.task == "dual-encoder",
        },
        "limits": {
            "max_images": limits.max_images,
            "max_image_bytes": limits.max_image_bytes,
            "max_videos": limits.max_videos,
            "max_frames": limits.max_frames,
            "max_choices": limits.max_choices,
            "max_inputs": limits.max_inputs,
            "max_labels": limits.max_labels,
        },
        "video_layouts": list(LAYOUTS) if converses else [],
        "vision_methods": card.vision_methods,
        "vision_default": card.vision_default and asdict(card.vision_default),
        "kv_policies": card.kv_policies,
        "kv_default": card.kv_default and asdict(card.kv_default),
        "embedding_tasks": card.embedding_tasks,
        "adapters": card.adapters,
        "gated": card.is_gated,
        "gates": [gate.model_dump() for gate in card.gates],
        "unmeasured": [each.model_dump() for each in card.unmeasured],
    }


def _health(is_well: bool, word: str, reason: str) -> Response:
    if is_well:
        return JSONResponse({"status": word})
    return JSONResponse({"status": f"not {word}", "reason": reason}, 503)
