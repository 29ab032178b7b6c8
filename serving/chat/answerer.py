"""Who answers a conversation: a bundle in this process, or a server. And what an answer took."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from serving.chat.talk import Talk
from serving.protocol import Timings, Usage


class Took:
    """What an answer took, the last that comes of it.

    Attributes:
        usage: Tokens; None where the server counts none.
        timings: Until the first token and the end.
        reason: Why it ended: "length" where it was cut.
    """

    def __init__(self, usage: Usage | None, timings: Timings, reason: str) -> None:
        self.usage = usage
        self.timings = timings
        self.reason = reason


class Answerer(Protocol):
    """Answers conversations, one at a time."""

    @property
    def name(self) -> str:
        """Of the model."""
        ...

    async def start(self) -> None:
        """Load the model, or find it.

        Raises:
            PocketVLMError: There is none that chats.
        """
        ...

    def answer(self, talk: Talk, question: str) -> AsyncGenerator[str | Took, None]:
        """Yield the answer's pieces as they come, then what it took. Closing the iterator stops it.

        Raises:
            PocketVLMError: The model cannot answer this, or is gone.
        """
        ...

    async def close(self) -> None:
        """Give everything back."""
        ...
