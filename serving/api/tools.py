"""Functions that a chat offers, as OpenAI writes them, and what they ask of its answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from bundle.errors import ParameterError
from serving.api.fields import Strict, Text, at_most, object_text
from serving.api.structured import JsonSchema
from serving.protocol import SamplingParams, Structure, Tool

MOST_TOOLS = 128
MOST_CALLS = 16
"""In one answer that is held to calls: a model that knows no end makes no more."""
Choice = Literal["none", "auto", "required"]
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionSpec(Strict):
    """A function. Without `parameters` it takes none; `strict` ones are always followed, others where that can be."""

    name: ToolName
    description: Text | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class FunctionTool(Strict):
    """A function that the model may call."""

    type: Literal["function"]
    function: FunctionSpec


class FunctionName(Strict):
    """Which function."""

    name: ToolName


class NamedToolChoice(Strict):
    """The function that the model has to call."""

    type: Literal["function"]
    function: FunctionName


class CalledFunction(Strict):
    """A function, and the JSON text of its arguments."""

    name: ToolName
    arguments: Text


class ToolCallField(Strict):
    """A call that the model made; `index` is what a stream's pieces carry."""

    id: Annotated[Text, Field(min_length=1, max_length=256)]
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None


Tools = Annotated[list[FunctionTool], Field(fail_fast=True), at_most(MOST_TOOLS, "tools")]
ToolChoice = Choice | NamedToolChoice
ToolCalls = Annotated[list[ToolCallField], Field(fail_fast=True), at_most(MOST_TOOLS, "calls")]


@dataclass(frozen=True)
class Offer:
    """What a request offers, whatever API it speaks.

    Attributes:
        tools: All of them.
        choice: "none": the model is not told of them. "auto": it may call. "required": it has to.
        named: The one function that it has to call, if it has to call a certain one.
        is_parallel: Several calls in one answer are taken.
        param: The field that says what must be called, for errors.
    """

    tools: tuple[Tool, ...] = ()
    choice: Choice = "none"
    named: str | None = None
    is_parallel: bool = True
    param: str = "tool_choice"

    @property
    def told(self) -> tuple[Tool, ...]:
        """Functions that the model is told of."""
        return () if self.choice == "none" else self.tools

    def structure(self, sampling: SamplingParams) -> Structure | None:
        """Return what the answer is held to; None holds it to nothing.

        Calls alone where one is required, whatever structure the request asks for; where one may be, calls or that
        structure, or text in which calls are right.
        """
        if not self.told:
            return sampling.structure
        if self.choice == "required":
            return self._held([tool for tool in self.tools if self.named in (None, tool.name)], self.param)
        if (said := sampling.structure) is not None:
            return self._held(self.tools, said.param, is_required=False, answer=said)
        is_strict = any(tool.is_strict for tool in self.tools)
        if not is_strict and _ends_otherwise(sampling):
            return None
        return self._held(self.tools, "tools", is_required=False, is_optional=not is_strict)

    def _held(
        self,
        tools: Sequence[Tool],
        param: str,
        *,
        is_required: bool = True,
        is_optional: bool = False,
        answer: Structure | None = None,
    ) -> Structure:
        is_one = not self.is_parallel or self.named is not None
        functions = [{"name": tool.name, "parameters": json.loads(tool.parameters)} for tool in tools]
        asked = {"tools": functions, "most": 1 if is_one else MOST_CALLS, "is_required": is_required}
        if answer is not None:
            asked["answer"] = {"kind": answer.kind, "text": answer.text}
        return Structure("tools", json.dumps(asked), param, is_optional)


def _ends_otherwise(sampling: SamplingParams) -> bool:
    """Return whether a request says what no structure goes with."""
    return bool(sampling.stop or sampling.stop_token_ids or sampling.min_tokens or sampling.ignores_eos)


def json_text(value: dict[str, Any], param: str) -> str:
    """Return a JSON object as text that a template can be filled with.

    Raises:
        ParameterError: As `object_text`, by the name of the field.
    """
    try:
        return object_text(value)
    except ValueError as error:
        raise ParameterError(f"{param}: {error}", param) from error


def tool_of(
    name: str, description: str | None, schema: dict[str, Any] | None, *, is_strict: bool | None, param: str
) -> Tool:
    """Return a function as the engine takes it.

    Raises:
        ParameterError: Its arguments are no JSON object, or their schema is none that `json_text` takes.
    """
    parameters = schema or _NO_PARAMETERS
    if parameters.get("type", "object") != "object":
        raise ParameterError(
            f"{param}: the arguments of a function are a JSON object; its schema's type must be object", param
        )
    return Tool(name, description or "", json_text({"type": "object", **parameters}, param), bool(is_strict))


def offer_of(tools: Sequence[FunctionTool] | None, choice: ToolChoice | None, *, is_parallel: bool) -> Offer:
    """Return what a chat's fields offer.

    Raises:
        ParameterError: Two functions have one name, or what must be called is not offered.
    """
    own = tuple(_tool(tool.function, f"tools.{index}.function.parameters") for index, tool in enumerate(tools or ()))
    if isinstance(choice, NamedToolChoice):
        return checked(Offer(own, "required", choice.function.name, is_parallel))
    return checked(Offer(own, choice or "auto", None, is_parallel))


def _tool(function: FunctionSpec, param: str) -> Tool:
    return tool_of(function.name, function.description, function.parameters, is_strict=function.strict, param=param)


def checked(offer: Offer) -> Offer:
    """Return an offer whose names differ, and hold what must be called.

    Raises:
        ParameterError: They do not.
    """
    names = [tool.name for tool in offer.tools]
    if twice := next((each for each in names if names.count(each) > 1), None):
        raise ParameterError(f"tools: two functions are named {twice!r}; names must differ", "tools")
    if offer.named is not None and offer.named not in names:
        offered = ", ".join(names) or "none"
        raise ParameterError(
            f"{offer.param} names {offer.named!r}, which is not offered; offered: {offered}", offer.param
        )
    if offer.choice == "required" and not names:
        raise ParameterError(f"{offer.param} asks for a call, and tools offers no function", offer.param)
    return offer
