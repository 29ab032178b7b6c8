"""The one route that changes a server: what earlier requests left is forgotten. A setting has to ask for it."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter


def caches_router(clear: Callable[[], None]) -> APIRouter:
    """Return the route.

    Args:
        clear: Forgets; returns at once.
    """
    router = APIRouter(tags=["status"])

    @router.post("/v1/cache/clear")
    async def clear_caches() -> dict[str, str]:
        """Forget features of images and what was read of prompts; running answers go on."""
        clear()
        return {"status": "cleared"}

    return router
