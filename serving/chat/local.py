"""Answers of a bundle in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from bundle.errors import TaskError
from bundle.manifest import ANSWERING_TASKS
from serving.chat.answerer import Took
from serving.chat.talk import Choices, Picture, Talk, Turn
from serving.models.client import LocalClient
from serving.oneshot import settings_of_one
from serving.protocol import (
    FinishedEvent,
    GenerateRequest,
    ImagePart,
    KVCompression,
    Message,
    SamplingParams,
    TextPart,
    TokenEvent,
    VisionReduction,
)


class LocalAnswerer:
    """A bundle's model; what a conversation begins with is read once, since its prompts stay in the cache.

    Args:
        bundle: Its folder; one that failed its quality gate is loaded too.
        threads: Inside one operator; 0 means one per physical core.
        adapter: Of the bundle's, by name, that all is answered through; empty: none.
    """

    def __init__(self, bundle: Path, threads: int = 0, adapter: str = "") -> None:
        self._bundle, self._adapter = bundle, adapter
        self._client = LocalClient([bundle], settings_of_one(threads))
        self._is_started = False
        self.name = ""

    async def start(self) -> None:
        """Load the model.

        Raises:
            BundleError: The bundle is not usable.
            TaskError: It does not chat.
        """
        await self._client.start()
        self._is_started = True
        card = (await self._client.models())[0]
        if card.task not in ANSWERING_TASKS:
            raise TaskError(f"{self._bundle} does {card.task}, and does not chat; try pocketvlm embed")
        self.name = self._adapter or card.name

    async def answer(self, talk: Talk, question: str) -> AsyncGenerator[str | Took, None]:
        """Yield the answer's pieces, then what it took.

        Raises:
            RequestError: The model cannot answer this.
        """
        events = self._client.generate(_request(self.name, talk, question))
        async with aclosing(events):
            async for event in events:
                if isinstance(event, TokenEvent):
                    yield event.text
                elif isinstance(event, FinishedEvent):
                    yield Took(event.usage, event.timings, event.reason)

    async def close(self) -> None:
        """Unload the model; one that did not load has gone already."""
        if self._is_started:
            await self._client.close()


def _request(model: str, talk: Talk, question: str) -> GenerateRequest:
    messages = [Message("system", (TextPart(talk.system),))] if talk.system else []
    for turn in [*talk.turns, Turn(question, tuple(talk.pictures))]:
        messages.append(Message("user", _parts(turn.question, turn.pictures)))
        if turn.answer:
            messages.append(Message("assistant", (TextPart(turn.answer),)))
    choices = talk.choices
    return GenerateRequest("chat", model, tuple(messages), _sampling(choices), kv=_kv(choices), vision=_vision(talk))


def _parts(text: str, pictures: tuple[Picture, ...]) -> tuple[TextPart | ImagePart, ...]:
    words = (TextPart(text),) if text else ()
    return (*(ImagePart(picture.data) for picture in pictures), *words)


def _sampling(choices: Choices) -> SamplingParams:
    return SamplingParams(choices.max_tokens, choices.temperature, choices.top_p, choices.top_k, choices.seed)


def _kv(choices: Choices) -> KVCompression | None:
    return None if choices.kv is None else KVCompression(*choices.kv)


def _vision(talk: Talk) -> VisionReduction | None:
    return None if talk.choices.vision is None or not talk.has_pictures else VisionReduction(*talk.choices.vision)
