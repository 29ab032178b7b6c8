"""What `/v1/status` answers, for the API's document."""

from __future__ import annotations

from typing import Literal

from bundle.manifest import Task
from serving.api.answers.answer import Answer


class SlotAnswer(Answer):
    """One slot of a cache: what it is doing, for which answer, how many rows it holds."""

    slot: int
    state: Literal["free", "kept", "prefill", "compress", "decode"]
    rows: int
    request_id: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    image_tokens: int
    age_s: float


class WaitingAnswer(Answer):
    """One sequence that waits for a slot."""

    request_id: str
    prompt_tokens: int
    age_s: float


class EngineAnswer(Answer):
    """One engine: counts and clock of two answers tell rates. `waiting` names the first 64."""

    clock_s: float
    memory_bytes: int
    gauges: dict[str, float]
    slots: list[SlotAnswer]
    waiting: list[WaitingAnswer]
    slot_rows: int
    num_seats: int
    first_token_s: list[float]


class StatusModel(Answer):
    """One served model; its engines by id: "0", or the replicas' under Ray."""

    id: str
    task: Task
    model_type: str
    weight_bytes: int
    context_tokens: int | None
    kv_cache: str | None
    adapters: list[str]
    engines: dict[str, EngineAnswer]


class StatusAnswer(Answer):
    """The server and what it is doing."""

    object: Literal["status"]
    server: Literal["pocketvlm"]
    version: str
    uptime_s: float
    is_ready: bool
    reason: str
    models: list[StatusModel]
