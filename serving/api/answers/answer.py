"""What every answer's body is, and the one form of failures; the tests hold every real answer to these."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """A body, or an object within one."""

    model_config = ConfigDict(extra="forbid")


class Fault(Answer):
    """What went wrong.

    `param` names the field of the request, dotted, or the header; `code` is a word to branch on.
    """

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(Answer):
    """The one form of every failure; in a stream, the last event but `[DONE]`."""

    error: Fault


class TextUsage(Answer):
    """Counts of the tokens that texts took."""

    prompt_tokens: int
    total_tokens: int
