"""Ray's errors in our own words: the HTTP application knows `bundle.errors` alone, and answers each in one form."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from grpc import StatusCode
from grpc.aio import AioRpcError
from ray.exceptions import (
    ActorUnschedulableError,
    AsyncioActorExit,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    PendingCallsLimitExceeded,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
    RpcError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.exceptions import OutOfMemoryError as RayOutOfMemoryError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)

from bundle.errors import EngineDeadError, OutOfMemoryError, OverloadedError, PocketVLMError

_FULL = (BackPressureError, PendingCallsLimitExceeded)
_NO_MEMORY = (RayOutOfMemoryError, ObjectStoreFullError, OutOfDiskError)
_GONE = (
    RayActorError,
    ActorUnschedulableError,
    AsyncioActorExit,
    DeploymentUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    RaySystemError,
    ReplicaUnavailableError,
    RpcError,
    TaskCancelledError,
    WorkerCrashedError,
)
"""The process that had the request, or one on the way to it, is gone; TaskCancelledError: Ray took it away."""

_BROKEN_OFF = (StatusCode.UNAVAILABLE, StatusCode.CANCELLED, StatusCode.ABORTED)
"""How a message between replicas fails that the other end, while it goes away, no longer takes."""


def own_error(error: BaseException) -> Exception:
    """Return the error of ours behind one of Ray's.

    What is not foreseen comes back as a RuntimeError, for the log and a status of 500: Ray's own classes would be
    answered by Ray, in another form.
    """
    if isinstance(error, RayTaskError):
        cause = error.cause
        return own_error(cause) if isinstance(cause, (PocketVLMError, RayError, RayServeException)) else _unknown(error)
    if isinstance(error, PocketVLMError):
        return error
    if isinstance(error, _FULL):
        return OverloadedError(f"every replica is full and the queue as well ({error}); retry after a while")
    if isinstance(error, _NO_MEMORY):
        return OutOfMemoryError(f"a node lacks memory for this request ({type(error).__name__}); retry after a while")
    if is_loss(error):
        return EngineDeadError(f"the replica that had this request is gone ({type(error).__name__}); send it again")
    return _unknown(error)


def is_loss(error: BaseException) -> bool:
    """Return whether a request failed for what happened to its replica, not for what the replica made of it."""
    if isinstance(error, AioRpcError):
        return error.code() in _BROKEN_OFF
    return isinstance(error, (*_GONE, asyncio.CancelledError)) and not isinstance(error, RayTaskError)


def _unknown(error: BaseException) -> RuntimeError:
    return RuntimeError(f"a replica failed: {type(error).__name__}: {error}")


def cancel(response: Any) -> None:
    """Stop a replica's work for a response of a handle.

    A response whose request failed before a replica had it raises that failure again; it was told already.
    """
    with suppress(Exception, asyncio.CancelledError):
        response.cancel()
