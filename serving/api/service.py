"""What every route of one application shares."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from fastapi import Request

from bundle.errors import EngineDeadError, ModelNotFoundError, ParameterError, TaskError
from bundle.manifest import Task
from serving.api.images import image_part
from serving.api.metrics import Metrics
from serving.api.schemas import ImageContent, TextContent
from serving.protocol import EngineClient, ImagePart, ModelCard, TextPart
from serving.settings import ApiSettings


@dataclass(frozen=True)
class Service:
    """The engine behind the application, its limits and its counters.

    Attributes:
        client: Given by whoever made the application; started and closed there.
        settings: Limits of a request.
        metrics: Of this application.
        started_s: Unix time of the application's making.
    """

    client: EngineClient
    settings: ApiSettings
    started_s: int
    metrics: Metrics = field(default_factory=Metrics)

    async def card(self, name: str) -> ModelCard:
        """Return a served model.

        Raises:
            ModelNotFoundError: None has that name.
            EngineDeadError: None has that name yet, or any more.
        """
        cards = await self.client.models()
        for card in cards:
            if card.name == name:
                return card
        health = await self.client.health()
        if not health.is_ready:
            raise EngineDeadError(f"requests cannot be served: {health.reason}. Ask /health/ready before sending any.")
        served = ", ".join(card.name for card in cards) or "none"
        raise ModelNotFoundError(f"model {name!r} is not served here; served: {served}", "model")

    async def choose(self, request: Request, name: str, task: Task) -> str:
        """Return the name of a served model that does a task, and note it for the counters.

        Raises:
            ModelNotFoundError: None has that name.
            TaskError: It does something else.
        """
        card = await self.card(name)
        request.state.model_name = card.name
        if card.task != task:
            raise TaskError(f"model {name!r} does {card.task}; this route wants {task}", "model")
        return card.name

    def part(self, content: str | TextContent | ImageContent, param: str) -> TextPart | ImagePart:
        """Return one piece of a request as the engine takes it.

        Raises:
            ImageError: The image's URL is not a data URL, or the image is too large.
        """
        if isinstance(content, str):
            return TextPart(content)
        if isinstance(content, TextContent):
            return TextPart(content.text)
        return image_part(content.image_url.url, f"{param}.image_url.url", self.settings.max_image_bytes)


def check_count(count: int, limit: int, param: str, noun: str) -> None:
    """Refuse more of something than one request may hold.

    Raises:
        ParameterError: `count` is above `limit`.
    """
    if count > limit:
        raise ParameterError(f"{param}: {count} {noun}; one request may hold {limit}", param)


def new_id(prefix: str) -> str:
    """Return an id that no other request has, whatever the clients send."""
    return f"{prefix}-{uuid.uuid4().hex}"
