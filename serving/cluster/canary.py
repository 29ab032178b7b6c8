"""One name for several variants of a model: who gets which, and how each does."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeVar

from bundle.errors import RequestError, SettingsError
from serving.cluster.affinity import opening_of
from serving.cluster.demand import nearest_rank
from serving.protocol import (
    ClassifyRequest,
    DetokenizeRequest,
    EmbedRequest,
    FinishedEvent,
    GenerateEvent,
    GenerateRequest,
    ModelCard,
    ScoreRequest,
    TokenEvent,
    TokenizeRequest,
)
from serving.ray_settings import Canary

_MOST_TIMES = 1000
"""Of each variant in each process: the latest ones are told of."""

T = TypeVar("T")
ModelRequest = GenerateRequest | EmbedRequest | ScoreRequest | ClassifyRequest | TokenizeRequest | DetokenizeRequest


@dataclass
class VariantFigures:
    """What one process saw of one variant.

    Attributes:
        num_requests: That were sent to it and came to an end.
        num_failed: Those of them that failed for what is not their own mistake.
        first_token_s: Of the latest answers, from the request to the first token.
        total_s: Of the latest answers, from the request to the end.
    """

    num_requests: int = 0
    num_failed: int = 0
    first_token_s: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_TIMES))
    total_s: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_TIMES))

    def fail(self, error: Exception) -> None:
        """Take a failure down; a caller's mistake is nobody else's."""
        self.num_requests += 1
        self.num_failed += not isinstance(error, RequestError)

    def end(self, total_s: float) -> None:
        """Take an answer down that came to its end."""
        self.num_requests += 1
        self.total_s.append(total_s)


class Split:
    """The requests of one canary, in one process.

    Attributes:
        canary: Name, variants, weights; may be replaced while requests run.
        figures: Of each variant that had a request.
    """

    def __init__(self, canary: Canary) -> None:
        self.canary = canary
        self.figures: dict[str, VariantFigures] = {}

    def variant_of(self, request: ModelRequest) -> str:
        """Return the variant that a request goes to.

        A conversation stays with its variant from turn to turn, in every process, as long as the weights stay; where
        they change, only as many move as the change is large. Requests that are no conversation go by chance.
        """
        opening = opening_of(request.messages) if isinstance(request, GenerateRequest | TokenizeRequest) else b""
        key = opening or request.request_id.encode()
        drawn = int.from_bytes(blake2b(self.canary.name.encode() + b"\0" + key, digest_size=8).digest(), "little") % 100
        for variant in self.canary.variants:
            drawn -= variant.weight
            if drawn < 0:
                return variant.model
        raise ValueError(f"the weights of {self.canary.name} do not sum to 100")

    async def timed(
        self, variant: str, events: AsyncGenerator[GenerateEvent, None]
    ) -> AsyncGenerator[GenerateEvent, None]:
        """Yield an answer's events, and take its times down."""
        figures, started_s, is_first = self._of(variant), time.monotonic(), True
        try:
            async with aclosing(events):
                async for event in events:
                    if is_first and isinstance(event, TokenEvent):
                        figures.first_token_s.append(time.monotonic() - started_s)
                        is_first = False
                    if isinstance(event, FinishedEvent):
                        figures.end(time.monotonic() - started_s)
                    yield event
        except Exception as error:
            figures.fail(error)
            raise

    async def timed_whole(self, variant: str, answer: Awaitable[T]) -> T:
        """Return an answer in one piece, and take its time down."""
        figures, started_s = self._of(variant), time.monotonic()
        try:
            answered = await answer
        except Exception as error:
            figures.fail(error)
            raise
        figures.end(time.monotonic() - started_s)
        return answered

    def told(self) -> dict[str, VariantFigures]:
        """Return the figures of every variant."""
        return {variant.model: self._of(variant.model) for variant in self.canary.variants}

    def _of(self, variant: str) -> VariantFigures:
        return self.figures.setdefault(variant, VariantFigures())


def check_canaries(canaries: Sequence[Canary], cards: Sequence[ModelCard]) -> None:
    """Refuse canaries that cannot be served.

    Raises:
        SettingsError: A name is taken, a variant is not served, or two do different things.
    """
    known, names = {card.name: card for card in cards}, set[str]()
    for canary in canaries:
        if canary.name in known or canary.name in names:
            raise SettingsError(f"the canary {canary.name!r} has a name that is served already; choose another")
        names.add(canary.name)
        for variant in canary.variants:
            if variant.model not in known:
                raise SettingsError(
                    f"the canary {canary.name!r} names the variant {variant.model!r}, which is not served; "
                    f"served: {', '.join(known)}. Deploy its bundle as well, or correct the name."
                )
        tasks = {known[variant.model].task for variant in canary.variants}
        if len(tasks) > 1:
            raise SettingsError(
                f"the canary {canary.name!r} mixes models for {' and '.join(sorted(tasks))}; variants do the same"
            )


def compared(
    canary: Canary, told: Iterable[Mapping[str, VariantFigures]], cards: Mapping[str, ModelCard]
) -> dict[str, Any]:
    """Return what is known of a canary's variants side by side, as JSON.

    Args:
        canary: Whose variants.
        told: By each process.
        cards: Of the variants, by name.
    """
    everything = list(told)
    rows = []
    for variant in canary.variants:
        seen = [each[variant.model] for each in everything if variant.model in each]
        measured = {
            "requests": sum(each.num_requests for each in seen),
            "failed": sum(each.num_failed for each in seen),
            "first_token_ms": _percentiles(value for each in seen for value in each.first_token_s),
            "total_ms": _percentiles(value for each in seen for value in each.total_s),
        }
        rows.append({"model": variant.model, "weight": variant.weight, **measured, **_quality(cards[variant.model])})
    return {"name": canary.name, "variants": rows}


def _percentiles(values_s: Iterable[float]) -> dict[str, float | int | None]:
    values_ms = [value * 1e3 for value in values_s]
    ranks = {name: round(nearest_rank(values_ms, share), 1) for name, share in (("p50", 0.5), ("p95", 0.95))}
    return {"n": len(values_ms), **(ranks if values_ms else dict.fromkeys(ranks))}


def _quality(card: ModelCard) -> dict[str, Any]:
    return {
        "schemes": card.schemes,
        "weight_bytes": card.weight_bytes,
        "is_gated": card.is_gated,
        "gates": [gate.model_dump(mode="json") for gate in card.gates],
        "unmeasured": [each.model_dump(mode="json") for each in card.unmeasured],
    }
