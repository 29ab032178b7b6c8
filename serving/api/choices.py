"""The choices of a chat completion as OpenAI writes them: whole, or an event at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.protocol import FinishReason, TokenEvent, TokenLogprob


@dataclass
class WholeChoice:
    """One choice as it is gathered.

    Attributes:
        index: Of the choice.
        tells_logprobs: They were asked for.
        texts: Pieces so far.
        logprobs: Of the tokens so far.
        reason: Why it ended, once it has.
    """

    index: int
    tells_logprobs: bool
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: FinishReason | None = None

    def add(self, event: TokenEvent) -> None:
        """Take in a piece of it."""
        self.texts.append(event.text)
        self.logprobs += event.logprobs
        self.reason = event.reason

    def body(self) -> dict[str, Any]:
        """Return it as a part of an answer that is not streamed."""
        return {
            "index": self.index,
            "message": {"role": "assistant", "content": "".join(self.texts), "refusal": None},
            "logprobs": logprobs_body(self.logprobs) if self.tells_logprobs else None,
            "finish_reason": self.reason,
        }


def role_body(index: int) -> dict[str, Any]:
    """Return what a choice's first event holds."""
    return _event_body(index, {"role": "assistant", "content": ""}, None, None)


def delta_body(event: TokenEvent, *, tells_logprobs: bool) -> dict[str, Any]:
    """Return what the event of a piece holds."""
    logprobs = logprobs_body(event.logprobs) if tells_logprobs else None
    return _event_body(event.index, {"content": event.text}, logprobs, None)


def end_body(index: int, reason: FinishReason) -> dict[str, Any]:
    """Return what a choice's last event holds."""
    return _event_body(index, {}, None, reason)


def logprobs_body(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return tokens with their logprobs and alternatives."""
    content = [{**_token_body(each), "top_logprobs": [_token_body(top) for top in each.top]} for each in logprobs]
    return {"content": content, "refusal": None}


def _token_body(each: TokenLogprob) -> dict[str, Any]:
    # A part of a character has no text of its own; the bytes tell it.
    return {"token": each.data.decode(errors="replace"), "logprob": each.logprob, "bytes": list(each.data)}


def _event_body(
    index: int, delta: dict[str, str], logprobs: dict[str, Any] | None, reason: FinishReason | None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
