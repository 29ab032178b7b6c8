"""What one engine is doing at a moment, slot by slot; plain data, so that it pickles. Bounded by slots and a limit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

MOST_WAITING = 64
"""Sequences that are told one by one while they wait; the gauges count all."""
SlotState = Literal["free", "kept", "prefill", "compress", "decode"]


@dataclass(frozen=True)
class SlotStatus:
    """One slot of a cache.

    Attributes:
        slot: Its number; those that decode are 0, 1, 2, ...
        state: "kept": it holds the prompt of a sequence that has ended, for others that begin alike. "prefill": the
            prompt is read. "compress": rows are chosen that stay.
        rows: That it holds.
        request_id: The answer's id; empty where nothing runs.
        prompt_tokens: Of the sequence.
        output_tokens: Sampled so far.
        cached_tokens: Of the prompt, those that were here when it began.
        image_tokens: Of the prompt, those of images that are read.
        age_s: Since the sequence was handed to the engine.
    """

    slot: int
    state: SlotState = "free"
    rows: int = 0
    request_id: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0
    age_s: float = 0.0


@dataclass(frozen=True)
class WaitingStatus:
    """One sequence that waits for a slot.

    Attributes:
        request_id: The answer's id.
        prompt_tokens: Of the sequence.
        age_s: Since it was handed to the engine.
    """

    request_id: str
    prompt_tokens: int
    age_s: float


@dataclass(frozen=True)
class EngineStatus:
    """One engine of a model.

    Attributes:
        clock_s: Of its machine, monotonic: two statuses' counts and clocks tell a rate.
        memory_bytes: Resident in its process, with all models of it; 0 where the system does not tell.
        gauges: As `Health.model_gauges`, of this engine.
        slots: Of the cache, by number; none without a decoder.
        waiting: The first that wait for a slot, in the order in which they get one.
        slot_rows: Rows that one slot may hold.
        num_seats: Sequences that run at once; slots behind them only keep rows.
        first_token_s: Of the newest answers, the time from arrival to the first token, the oldest first.
    """

    clock_s: float
    memory_bytes: int = 0
    gauges: dict[str, float] = field(default_factory=dict)
    slots: tuple[SlotStatus, ...] = ()
    waiting: tuple[WaitingStatus, ...] = ()
    slot_rows: int = 0
    num_seats: int = 0
    first_token_s: tuple[float, ...] = ()
