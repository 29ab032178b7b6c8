"""`POST /tokenize` and `POST /detokenize`, in vLLM's form."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, model_validator

from bundle.errors import ParameterError
from bundle.frames.options import FrameOptions
from serving.api.contents import VisionOptions
from serving.api.conversation import conversation_of
from serving.api.disconnect import contained, until_disconnect
from serving.api.fields import Name, Off, OffOrEmptyObject, OffOrFalse, Strict, Text, at_most
from serving.api.schemas import Messages
from serving.api.service import Service, new_id
from serving.api.tools import Tools, offer_of
from serving.protocol import DetokenizeRequest, TokenizeRequest, VisionReduction


class TokenizeBody(Strict):
    """The body of `POST /tokenize`: a text, or a conversation as an answer to it would read it.

    `model` may be left out where only one model is served.
    """

    model: Name | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    vision: VisionOptions | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None
    continue_final_message: OffOrFalse = None
    chat_template: Off = None
    chat_template_kwargs: OffOrEmptyObject = None

    @model_validator(mode="after")
    def _check_one_source(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ParameterError("send either prompt or messages, and not both", "prompt")
        if self.prompt is not None and self.tools:
            raise ParameterError("tools belong to a conversation; send messages, or leave them out", "tools")
        if self.prompt is not None and self.vision is not None:
            raise ParameterError("vision says how images are reduced; send messages, or leave it out", "vision")
        if self.messages is not None and self.add_special_tokens:
            raise ParameterError(
                "add_special_tokens: a conversation has those that its template writes; leave it out",
                "add_special_tokens",
            )
        return self


class DetokenizeBody(Strict):
    """The body of `POST /detokenize`. `model` may be left out where only one model is served."""

    model: Name | None = None
    tokens: Annotated[
        list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(fail_fast=True), at_most("max_text_characters", "tokens")
    ]


def tokenize_router(service: Service) -> APIRouter:
    """Return both routes."""
    router = APIRouter(tags=["tokens"])

    @router.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        """Count the tokens of a text or a conversation, and tell them."""
        deadline = service.deadline(request)
        asked, tells_pieces = await service.read(request, deadline, TokenizeBody, partial(_asked, service))
        model = await service.choose(request, asked.model)
        with service.metrics.one_answer(model):
            work = deadline.finish(contained(service.client.tokenize(replace(asked, model=model))))
            found = await until_disconnect(request.receive, work)
        card = await service.card(model)
        body: dict[str, Any] = {
            "count": len(found.token_ids),
            "max_model_len": card.context_tokens,
            "tokens": list(found.token_ids),
            "token_strs": list(found.pieces) if tells_pieces else None,
        }
        return JSONResponse(body)

    @router.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        """Return the text of tokens, control tokens written out."""
        deadline = service.deadline(request)
        asked = await service.read(request, deadline, DetokenizeBody, _ids_asked)
        model = await service.choose(request, asked.model)
        with service.metrics.one_answer(model):
            work = deadline.finish(contained(service.client.detokenize(replace(asked, model=model))))
            return JSONResponse({"prompt": await until_disconnect(request.receive, work)})

    return router


def _asked(service: Service, body: TokenizeBody) -> tuple[TokenizeRequest, bool]:
    messages = conversation_of(service, body.messages or [], FrameOptions())
    request = TokenizeRequest(
        new_id("tok"),
        body.model or "",
        messages,
        offer_of(body.tools, None, is_parallel=True).told,
        body.prompt,
        body.add_special_tokens is not False,
        body.add_generation_prompt is not False,
        None if body.vision is None else VisionReduction(body.vision.method, body.vision.keep),
    )
    return request, bool(body.return_token_strs)


def _ids_asked(body: DetokenizeBody) -> DetokenizeRequest:
    return DetokenizeRequest(new_id("detok"), body.model or "", tuple(body.tokens))
