"""A session that remembers what it says, over an answerer without a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from bundle.errors import EngineDeadError, PromptError
from serving.api.app import create_app
from serving.chat.answerer import Took
from serving.chat.session import Session, Voice
from serving.chat.talk import Talk
from serving.fake import FakeClient
from serving.protocol import Timings, Usage
from serving.settings import ApiSettings


@dataclass
class Parrot:
    """Answers with the question's words, one after the other.

    Attributes:
        asked: What it was asked, in OpenAI's form.
        fails: It breaks off after the first word.
        hangs: It waits for ever after the first word.
        knows_turns: It goes on with a conversation; PaliGemma's template does not.
    """

    name: str = "parrot"
    asked: list[list[dict[str, Any]]] = field(default_factory=list)
    fails: bool = False
    hangs: bool = False
    knows_turns: bool = True

    async def start(self) -> None:
        pass

    async def answer(self, talk: Talk, question: str) -> AsyncGenerator[str | Took, None]:
        self.asked.append(talk.messages(question))
        if talk.turns and not self.knows_turns:
            raise PromptError("this model answers one message")
        for place, word in enumerate(question.split()):
            yield f" {word}"
            if self.fails and place == 0:
                raise EngineDeadError("the parrot flew away")
            if self.hangs and place == 0:
                await asyncio.sleep(3600)
        yield Took(Usage(7, 9), Timings(first_token_s=0.1, total_s=1.1), "stop")

    async def close(self) -> None:
        pass


@dataclass
class Heard:
    """A session, and what it said."""

    session: Session
    answers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def take(self, *lines: str) -> None:
        """Type lines."""
        for line in lines:
            asyncio.run(self.session.take(line))


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


@pytest.fixture
def hear() -> Callable[[Any], Heard]:
    """Make a session over an answerer."""

    def make(answerer: Any) -> Heard:
        heard = Heard(None)  # type: ignore[arg-type]
        voice = Voice(
            heard.answers.append, lambda: heard.answers.append("\n"), heard.notes.append, heard.troubles.append
        )
        heard.session = Session(answerer, voice)
        return heard

    return make


@pytest.fixture
def heard(hear: Callable[[Any], Heard], parrot: Parrot) -> Heard:
    return hear(parrot)


@pytest.fixture
def make_client() -> Callable[..., httpx.Response]:
    """Send a request to an application over a fake engine, in this process."""

    def send(method: str, path: str, body: Any) -> httpx.Response:
        async def sent() -> httpx.Response:
            transport = httpx.ASGITransport(create_app(FakeClient(), ApiSettings()))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, json=body)

        return asyncio.run(sent())

    return send
