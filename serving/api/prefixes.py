"""`/v1/prefixes`: beginnings of conversations, demonstrations say, that are sent once and named by later requests.

A plain prefix is its messages. A request that names one is answered as if it had sent them before its own, so that
answers are the same by construction; what saves time is that its features and rows are found again where they were
kept. Making one reads it once, which puts them there. A fused one is what the engine left of its messages: the rows of
their text, which a request begins with; what it showed is not kept. A task vector is what demonstrations left in a few
attention heads, which give it again when a request is answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from bundle.errors import EngineDeadError, ParameterError, PrefixNotFoundError
from bundle.frames.options import FrameOptions
from bundle.manifest import ANSWERING_TASKS
from serving.api.answering import Answering
from serving.api.conversation import check_counts, conversation_of
from serving.api.deadline import Deadline
from serving.api.disconnect import until_disconnect
from serving.api.parsing import parse_body
from serving.api.record import record_of
from serving.api.schemas import PrefixRequest
from serving.api.service import Service, check_count, new_id
from serving.api.stored_prefixes import PrefixFacts, PrefixStore
from serving.protocol import (
    FinishedEvent,
    GenerateRequest,
    KVCompression,
    Message,
    SamplingParams,
    TextPart,
    Usage,
    VisionReduction,
)

T = TypeVar("T")

_ALL_ROWS = KVCompression("uniform", 1.0)
_NO_FOLDER = "this server keeps no prefixes; start it with --prefix-folder FOLDER"


def prefixes_router(service: Service, store: PrefixStore) -> APIRouter:
    """Return the routes that make, list and delete prefixes."""
    router = APIRouter(tags=["prefixes"])

    @router.post("/v1/prefixes")
    async def make(request: Request) -> Response:
        """Keep the beginning of a conversation under a name, and read it once."""
        deadline = service.deadline(request)
        body, messages = await service.read(request, deadline, PrefixRequest, lambda body: _asked(service, body))
        content = body.model_dump_json(exclude_unset=True).encode()
        await _on_disk(service, deadline, lambda: store.check_room(body.name, len(content)))
        sampling = SamplingParams(max_tokens=1, temperature=0.0)
        fuses, learns, vision = body.method == "fused", body.method == "task-vectors", body.vision
        asked = GenerateRequest(
            new_id("prefix"),
            body.model or "",
            messages,
            sampling,
            kv=_ALL_ROWS if fuses or learns else None,
            vision=None if vision is None else VisionReduction(vision.method, vision.keep),
            fuses=fuses,
            learns=learns,
        )
        answering = await Answering.begin(service, request, asked, deadline)
        _, finished = await until_disconnect(request.receive, answering.whole())
        usage = finished.usage
        if fuses or learns:
            content = _fused(finished)
        facts = PrefixFacts(
            body.name,
            answering.model,
            int(time.time()),
            usage.prompt_tokens,
            usage.image_tokens,
            body.method,
            _rows(body.method, usage),
            len(content),
            finished.replaced_heads,
        )
        await _on_disk(service, deadline, lambda: store.add(facts, content))
        return JSONResponse(_told(facts))

    @router.get("/v1/prefixes")
    async def listed(request: Request) -> dict[str, Any]:
        """List the prefixes."""
        found = await _on_disk(service, service.deadline(request), store.listed)
        return {"object": "list", "data": [_told(facts) for facts in found]}

    @router.delete("/v1/prefixes/{name}")
    async def delete(request: Request, name: str) -> dict[str, Any]:
        """Forget a prefix; requests that run go on."""
        await _on_disk(service, service.deadline(request), lambda: store.remove(name))
        return {"name": name, "object": "prefix", "deleted": True}

    return router


def no_prefixes_router() -> APIRouter:
    """Return the routes of a server that keeps none: they say how it would."""
    router = APIRouter(include_in_schema=False)

    @router.api_route("/v1/prefixes", methods=["GET", "POST"])
    @router.delete("/v1/prefixes/{name}")
    async def none(name: str = "") -> None:
        raise PrefixNotFoundError(_NO_FOLDER)

    return router


async def behind_prefix(
    service: Service, request: Request, name: str, asked: GenerateRequest, deadline: Deadline
) -> GenerateRequest:
    """Return a request with the messages of a prefix before its own.

    Args:
        service: Its limits hold for both together.
        request: That asks.
        name: Of the prefix.
        asked: Of the engine, without the prefix.
        deadline: When it is stopped.

    Raises:
        PrefixNotFoundError: There is none of that name.
        ParameterError: Prefixes are not kept, it is another model's, or a limit is passed.
    """
    store = service.prefixes
    if store is None:
        raise ParameterError(f"prefix {name!r}: {_NO_FOLDER}", "prefix")
    model = await service.choose(request, asked.model, *ANSWERING_TASKS)
    size_bytes = await _on_disk(service, deadline, lambda: store.size_bytes(name))
    record_of(request).until_end.enter_context(service.budget.share()).grow(size_bytes, size_bytes)
    facts, content = await _on_disk(service, deadline, lambda: store.read(name))
    if facts.model != model:
        raise ParameterError(f"prefix {name!r} was made for the model {facts.model!r}, not {model!r}", "prefix")
    if facts.method != "plain":
        check_reduces_something(asked)
        return replace(asked, behind=content)
    messages = await _on_disk(service, deadline, lambda: _begun(service, content))
    whole = messages + asked.messages
    check_count(len(whole), service.settings.max_messages, "prefix and messages", "messages")
    check_counts(service, [part for message in whole for part in message.parts])
    return replace(asked, messages=whole)


def check_reduces_something(asked: GenerateRequest) -> None:
    """Check that a request which reduces images has some.

    Raises:
        ParameterError: It has none.
    """
    has_images = any(not isinstance(part, TextPart) for message in asked.messages for part in message.parts)
    if asked.vision is not None and asked.vision.keep < 1 and not has_images:
        raise ParameterError("vision says how images are reduced, and no message holds one; leave it out", "vision")


def _asked(service: Service, body: PrefixRequest) -> tuple[PrefixRequest, tuple[Message, ...]]:
    options = FrameOptions(most_frames=service.settings.max_frames)
    return body, conversation_of(service, body.messages, options)


def _begun(service: Service, content: bytes) -> tuple[Message, ...]:
    return _asked(service, parse_body([content], PrefixRequest, service.settings))[1]


def _rows(method: str, usage: Usage) -> int:
    """Return what a request behind a prefix begins with in each layer."""
    if method == "plain":
        return usage.cache_rows_after
    return usage.prompt_tokens - usage.kept_image_tokens if method == "fused" else 0


def _fused(finished: FinishedEvent) -> bytes:
    if finished.fused is None:
        raise EngineDeadError("the engine read the prefix and gave nothing of it; send it again")
    return finished.fused


async def _on_disk(service: Service, deadline: Deadline, work: Callable[[], T]) -> T:
    return await deadline.finish(asyncio.get_running_loop().run_in_executor(service.parser, work))


def _told(facts: PrefixFacts) -> dict[str, Any]:
    return {"object": "prefix", **asdict(facts)}
