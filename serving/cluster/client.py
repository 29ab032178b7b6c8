"""An engine on the other side of Ray Serve's deployment handles."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)

from bundle.errors import EngineDeadError, ModelNotFoundError, OverloadedError, PocketVLMError
from serving.protocol import (
    ClassifyRequest,
    ClassifyResult,
    EmbedRequest,
    EmbedResult,
    GenerateEvent,
    GenerateRequest,
    Health,
    ModelCard,
)

_STATUS_AGE_S = 1.0
"""For so long one answer of Serve's controller stands for all probes."""
_STATUS_TIMEOUT_S = 5.0


class RayClient:
    """An `EngineClient` over deployment handles.

    Args:
        cards: Of the served models, in order; a bundle does not change under a deployment.
        handles: By the name of the served model.
        status: Returns for each model the number of replicas that run, by asking Serve's controller; blocks.
    """

    def __init__(
        self, cards: Sequence[ModelCard], handles: dict[str, Any], status: Callable[[], dict[str, int]]
    ) -> None:
        self._cards = list(cards)
        self._handles = handles
        self._streams = {name: handle.options(stream=True) for name, handle in handles.items()}
        self._status = status
        self._health = Health(is_ready=False, reason="the replicas were not asked yet")
        self._health_until_s = 0.0

    async def models(self) -> list[ModelCard]:
        """Return the served models."""
        return self._cards

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """Yield the answer's pieces, then exactly one FinishedEvent, or raise. Closing the iterator cancels."""
        events = self._of(self._streams, request.model).generate.remote(request)
        try:
            async for event in events:
                yield event
        except (RayError, RayServeException) as error:
            raise own_error(error) from error
        finally:
            events.cancel()

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Return one embedding per input."""
        result: EmbedResult = await _result(self._of(self._handles, request.model).embed.remote(request))
        return result

    async def classify(self, request: ClassifyRequest) -> ClassifyResult:
        """Return every image's score for every label."""
        result: ClassifyResult = await _result(self._of(self._handles, request.model).classify.remote(request))
        return result

    async def health(self) -> Health:
        """Return whether every model has a replica that runs.

        Serve's controller is asked, not the replicas: a question to a replica would wait behind its requests, and a
        full model would look like a dead one. The controller hears from each replica's `check_health`.
        """
        if time.monotonic() >= self._health_until_s:
            self._health = await self._ask_controller()
            self._health_until_s = time.monotonic() + _STATUS_AGE_S
        return self._health

    async def _ask_controller(self) -> Health:
        try:
            running = await asyncio.wait_for(asyncio.to_thread(self._status), _STATUS_TIMEOUT_S)
        except (RayError, RayServeException, asyncio.TimeoutError) as error:
            return Health(is_ready=False, reason=f"Serve's controller does not answer: {type(error).__name__}")
        lacking = [name for name, count in running.items() if count == 0]
        reason = f"no replica runs of: {', '.join(lacking)}" if lacking else ""
        return Health(not lacking, reason, {name: {"num_replicas": float(count)} for name, count in running.items()})

    def _of(self, handles: dict[str, Any], model: str) -> Any:
        if model not in handles:
            raise ModelNotFoundError(f"no model {model!r} is served; there are {', '.join(handles)}", "model")
        return handles[model]


async def _result(response: Any) -> Any:
    """Return what a replica answers; the replica's work is cancelled with the waiting.

    Raises:
        PocketVLMError: As the replica raised it.
    """
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except (RayError, RayServeException) as error:
        raise own_error(error) from error


def own_error(error: Exception) -> Exception:
    """Return the PocketVLM error behind one of Ray's; an error that we did not raise stays as it is."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, PocketVLMError):
        return error.cause
    if isinstance(error, BackPressureError):
        return OverloadedError(f"every replica is full and the queue as well ({error}); retry after a while")
    if isinstance(error, (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)):
        return EngineDeadError(f"the replica that had this request is gone ({type(error).__name__}); send it again")
    return error
