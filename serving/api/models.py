"""`POST /v1/models/load` and `/v1/models/unload`: what is served changes while it is served, for administrators."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import Field

from bundle.errors import BundleError, ModelNotFoundError, ParameterError, SettingsError
from serving.api.disconnect import contained
from serving.api.fields import Name, Strict
from serving.api.record import record_of
from serving.api.service import Service
from serving.api.status import card_body
from serving.protocol import ModelControl

T = TypeVar("T")

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_SHOWN_NAMES = 50
_DRAIN_S = 30.0


class LoadBody(Strict):
    """A bundle to serve: the name of its folder, within the operator's."""

    model: Name


class UnloadBody(Strict):
    """A model to serve no more; `drain_timeout_s` is how long requests under way may go on."""

    model: Name
    drain_timeout_s: Annotated[float, Field(ge=0, le=3600)] = _DRAIN_S


def models_router(service: Service, control: ModelControl, folder: Path) -> APIRouter:
    """Return the routes.

    Args:
        service: Of the application.
        control: Loads and unloads.
        folder: Bundles come from it, and from nowhere else.
    """
    router = APIRouter(tags=["status"])

    @router.post("/v1/models/load")
    async def load(request: Request) -> dict[str, Any]:
        """Load a bundle, check it as at a start, and serve it; answered once it is warm."""
        body = await service.read(request, service.deadline(request), LoadBody, _same, is_recorded=False)
        directory = await asyncio.to_thread(_bundle_within, folder, body.model)
        try:
            card = await _to_its_end(control.load(directory))
        except (BundleError, SettingsError) as error:  # refused as at a start, and here it is the caller who chose it
            raise ParameterError(f"model {body.model}: {error}", "model") from error
        record_of(request).model = card.name
        return card_body(service, card.name, card)

    @router.post("/v1/models/unload")
    async def unload(request: Request) -> dict[str, Any]:
        """Take no more requests for a model, let those under way end, and free its memory."""
        body = await service.read(request, service.deadline(request), UnloadBody, _same, is_recorded=False)
        card = await service.card(body.model)
        record_of(request).model = card.name
        await _to_its_end(control.unload(card.name, body.drain_timeout_s))
        return {"id": card.name, "object": "model", "unloaded": True}

    return router


def _same(body: T) -> T:
    return body


async def _to_its_end(work: Awaitable[T]) -> T:
    """Return the result of work that goes on when nobody waits for it any more: half a load is none."""
    return await asyncio.shield(asyncio.ensure_future(contained(work)))


def _bundle_within(folder: Path, name: str) -> Path:
    """Return the folder of a bundle.

    Raises:
        ParameterError: It is not within `folder`, links followed.
        ModelNotFoundError: There is none.
    """
    base = folder.resolve()
    try:
        directory = (base / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise ParameterError(f"model {name!r} is no folder's name: {error}", "model") from error
    if base not in directory.parents:
        raise ParameterError(f"model {name!r} is not within the folder of models; name a folder in it", "model")
    if not (directory / _MANIFEST).is_file():
        found = sorted(path.parent.name for path in base.glob(f"*/{_MANIFEST}"))
        told = ", ".join(found[:_SHOWN_NAMES]) or "none"
        raise ModelNotFoundError(f"there is no bundle {name!r} in the folder of models; there are: {told}", "model")
    return directory
