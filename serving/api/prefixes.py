"""`/v1/prefixes`: beginnings of conversations, demonstrations say, that are sent once and named by later requests.

A plain prefix is its messages, with the images that they name by URL. A request that names one is answered as if it had
sent them before its own, so that answers are the same by construction; what saves time is that its features and rows
are found again where they were kept. Making one reads it once, which puts them there. A fused one is what the engine
left of its messages: the rows of their text, which a request begins with; what it showed is not kept. A task vector is
what demonstrations left in a few attention heads, which give it again when a request is answered.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
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
from serving.api.remote_urls import fetched_images
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
_URL_FIELDS = ("url", "video")
"""Which hold where an image is, or a list of it."""
_DATA = "data:application/octet-stream;base64,"
_NO_FOLDER = "this server keeps no prefixes; start it with --prefix-folder FOLDER"


def prefixes_router(service: Service, store: PrefixStore) -> APIRouter:
    """Return the routes that make, list and delete prefixes."""
    router = APIRouter(tags=["prefixes"])

    @router.post("/v1/prefixes")
    async def make(request: Request) -> Response:
        """Keep the beginning of a conversation under a name, and read it once."""
        deadline = service.deadline(request)
        body, messages, fetched = await service.read(
            request, deadline, PrefixRequest, lambda body: _asked(service, body)
        )
        content = await _on_disk(service, deadline, partial(_content, service, body, fetched))
        del fetched
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


def _asked(service: Service, body: PrefixRequest) -> tuple[PrefixRequest, tuple[Message, ...], Mapping[str, bytes]]:
    return body, _messages(service, body), fetched_images()


def _messages(service: Service, body: PrefixRequest) -> tuple[Message, ...]:
    return conversation_of(service, body.messages, FrameOptions(most_frames=service.settings.max_frames))


def _content(service: Service, body: PrefixRequest, fetched: Mapping[str, bytes]) -> bytes:
    """Return a plain prefix as it is kept, with the images that it names by URL in it; cut where all room ends."""
    data_urls = {url: f"{_DATA}{base64.b64encode(data).decode()}" for url, data in fetched.items()}
    told = _held(body.model_dump(mode="json", exclude_unset=True), data_urls if body.method == "plain" else {})
    pieces, num_bytes = list[bytes](), 0
    for piece in json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).iterencode(told):
        pieces.append(piece.encode())
        num_bytes += len(pieces[-1])
        if num_bytes > service.settings.max_prefix_bytes:
            break
    return b"".join(pieces)


def _held(value: Any, data_urls: Mapping[str, str], name: str = "") -> Any:
    """Return a part of a body, the value of a field of that name, with data in place of where it is."""
    if isinstance(value, dict):
        return {key: _held(each, data_urls, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_held(each, data_urls, name) for each in value]
    return data_urls.get(value, value) if name in _URL_FIELDS and isinstance(value, str) else value


def _begun(service: Service, content: bytes) -> tuple[Message, ...]:
    return _messages(service, parse_body([content], PrefixRequest, service.settings))


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
