"""Texts to tokens and back."""

from __future__ import annotations

from dataclasses import dataclass

from bundle.tools import Tool
from serving.protocol.generation import VisionReduction
from serving.protocol.messages import Message


@dataclass(frozen=True)
class TokenizeRequest:
    """What is to be counted: a conversation, as an answer to it would read it, or a text.

    Attributes:
        text: Where there are no messages.
        adds_special_tokens: With what the tokenizer puts around every text; of a text alone.
        opens_answer: With what opens the assistant's answer; of a conversation alone.
        vision: How its images are reduced; None: as requests that say nothing have it.
    """

    request_id: str
    model: str
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    text: str | None = None
    adds_special_tokens: bool = True
    opens_answer: bool = True
    vision: VisionReduction | None = None


@dataclass(frozen=True)
class TokenizeResult:
    """Ids of tokens, and how the vocabulary writes each."""

    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class DetokenizeRequest:
    """Ids of tokens whose text is wanted."""

    request_id: str
    model: str
    token_ids: tuple[int, ...]
