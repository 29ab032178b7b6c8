"""The end of an application on Ray Serve: nothing new is taken, what runs may end, what still runs is told."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from serving.cluster.proxy import INGRESS

logger = logging.getLogger(__name__)

_DRAINING = "the server is stopping and takes no more requests; send it to another one, or later"
_STOPPED = "the server stopped before the request was answered; send it to another one, or later"
_LOOK_S = 0.2
_ANSWER_S = 5.0
"""How long an ingress replica may take to answer."""
_ENDING_S = 5.0
"""For requests that were told to end: they look every half second."""
_FLUSH_S = 0.5
"""For proxies to pass the last bytes on."""


async def drain(application: str, timeout_s: float, hurry: threading.Event) -> None:
    """Refuse new requests, let those under way end, and fail what is left after that.

    Args:
        application: Its name, as Serve knows it.
        timeout_s: How long requests may go on.
        hurry: Ends the wait when it is set.
    """
    handle = serve.get_deployment_handle(INGRESS, application)
    await _ask_all(handle, "drain", _DRAINING)
    if num_left := await _wait_until_idle(handle, timeout_s, hurry):
        logger.warning("%d requests did not end within %g s and are failed", num_left, timeout_s)
        await _ask_all(handle, "stop", _STOPPED)
        await _wait_until_idle(handle, _ENDING_S, threading.Event())
    await asyncio.sleep(_FLUSH_S)


async def _wait_until_idle(handle: Any, timeout_s: float, hurry: threading.Event) -> int:
    """Return how many requests are under way, as soon as there are none or at the end of the time."""
    deadline_s = time.monotonic() + timeout_s
    num_left: int
    while (num_left := sum(await _ask_all(handle, "num_under_way"))) and time.monotonic() < deadline_s:
        if hurry.is_set():
            break
        await asyncio.sleep(_LOOK_S)
    return num_left


async def _ask_all(handle: Any, method: str, *args: Any) -> list[Any]:
    """Return what each ingress replica answers; one that does not has no requests any more, or none to be told."""
    try:
        answers = await handle.broadcast(method, *args).results_async(timeout_s=_ANSWER_S, return_exceptions=True)
    except (RayError, RayServeException, TimeoutError) as error:
        logger.warning("the ingress cannot be asked to %s: %s", method, type(error).__name__)
        return []
    return [answer for answer in answers if not isinstance(answer, BaseException)]
