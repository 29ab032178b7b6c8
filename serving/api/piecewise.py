"""What takes long to reckon or to write, in pieces on a thread: one call over all of it would hold up everyone.

NumPy's arithmetic lets others run; `json.dumps` does not. So answers with many numbers are written vector by vector.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi.responses import Response

from serving.api.service import Service

Item = TypeVar("Item")
Result = TypeVar("Result")

_AT_ONCE_US = 4_000
"""Done where it is asked for: it takes less than a frame of video."""
_PIECE_US = 20_000
"""Done between two turns of other requests."""


async def in_pieces(
    service: Service, do: Callable[[Item], Result], items: Sequence[Item], cost_us: Callable[[Item], float]
) -> list[Result]:
    """Return what is made of each item, in order.

    Args:
        service: Has the thread for it.
        do: Makes it.
        items: Any number.
        cost_us: About how long one takes, in microseconds.
    """
    costs_us = [cost_us(item) for item in items]
    if sum(costs_us) <= _AT_ONCE_US:
        return [do(item) for item in items]
    made, loop = list[Result](), asyncio.get_running_loop()
    for start, end in _pieces(costs_us):
        made += await loop.run_in_executor(
            service.reckoner, lambda piece: [do(item) for item in piece], items[start:end]
        )
    return made


def _pieces(costs_us: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Yield where pieces begin and end."""
    start, sum_us = 0, 0.0
    for place, each_us in enumerate(costs_us):
        if place > start and sum_us + each_us > _PIECE_US:
            yield start, place
            start, sum_us = place, 0.0
        sum_us += each_us
    yield start, len(costs_us)


def written(value: Any) -> bytes:
    """Return a value as JSON, as answers write it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def written_array(array: npt.NDArray[np.float32], encoding: str) -> bytes:
    """Return numbers as JSON, lists in lists by their axes, or the base64 of their little-endian float32 bytes."""
    raw = array.astype("<f4", copy=False)
    if encoding == "base64":
        return written(base64.b64encode(raw.tobytes()).decode())
    return written(raw.tolist()) if raw.ndim == 1 else written_list(written_array(row, encoding) for row in raw)


def written_list(items: Iterable[bytes]) -> bytes:
    """Return a list as JSON of items that are."""
    return b"[" + b",".join(items) + b"]"


def written_object(head: dict[str, Any], name: str, value: bytes, tail: dict[str, Any] | None = None) -> bytes:
    """Return an object as JSON: the fields of a head, one that is written already, and those of a tail."""
    rest = b"," + written(tail)[1:] if tail else b"}"
    return written(head)[:-1] + b"," + written(name) + b":" + value + rest


def json_answer(content: bytes) -> Response:
    """Return an answer of JSON that is written."""
    return Response(content, media_type="application/json")
