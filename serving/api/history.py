"""The calls of a conversation and their results: each result has its call, and each call its result."""

from __future__ import annotations

import json

from bundle.errors import ParameterError
from serving.api.tools import ToolCallField, json_text
from serving.api.validation import shown
from serving.protocol import ToolCall


class OpenCalls:
    """The calls that wait for their results, as a conversation is read in order."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}

    def add(self, calls: tuple[ToolCall, ...], param: str) -> None:
        """Note the calls of a message.

        Raises:
            ParameterError: Two have one id.
        """
        for call in calls:
            if call.id in self._ids:
                raise ParameterError(f"{param}: two calls have the id {shown(call.id)}; ids must differ", param)
            self._ids[call.id] = call.name

    def close(self, call_id: str, param: str) -> None:
        """Note a call's result.

        Raises:
            ParameterError: No call of the message before has that id, or its result is there already.
        """
        if self._ids.pop(call_id, None) is None:
            raise ParameterError(
                f"{param} = {shown(call_id)}: the message before makes no such call, or has its result already. Send "
                "each result once, right behind the message that calls.",
                param,
            )

    def check_none(self, param: str) -> None:
        """Refuse what comes before all results are there.

        Raises:
            ParameterError: A call has none.
        """
        if self._ids:
            call_id, name = next(iter(self._ids.items()))
            raise ParameterError(
                f"{param}: the call {shown(call_id)} of {name} before it has no result; send one for each call", param
            )


def call_of(field: ToolCallField, param: str) -> ToolCall:
    """Return a call that a client sends back.

    Raises:
        ParameterError: Its arguments are not the text of a JSON object, or of none that `json_text` takes.
    """
    text = field.function.arguments
    param = f"{param}.function.arguments"
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"{param} = {shown(text)}: not the text of a JSON object", param) from error
    if not isinstance(arguments, dict):
        raise ParameterError(f"{param} = {shown(text)}: not the text of a JSON object", param)
    return ToolCall(field.id, field.function.name, json_text(arguments, param))
