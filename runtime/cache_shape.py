"""What a model's states weigh: slots, their length, bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bundle.errors import SettingsError
from bundle.manifest import Manifest
from runtime.settings import DEFAULT_CONTEXT_TOKENS, Provider

_DEFAULT_SHARE = 2
"""Without a limit of its own, a cache may fill one in so many of its slots: few answers reach the end of a context."""
_FEWEST_ROWS = 2
"""Of the shortest sequence that can be answered: a token of the prompt and one of the answer."""

NUM_SNAPSHOTS = 2
"""Of a slot's states of fixed size: as they were behind the last image of its prompt, and near its end."""


@dataclass(frozen=True)
class CacheShape:
    """The size of one model's cache: `num_slots` sequences of at most `capacity_tokens` rows each.

    Attributes:
        num_slots: Sequences.
        capacity_tokens: Rows of a slot.
        bytes_per_token: Of one row over all states that have rows.
        bytes_per_slot: Of a slot's states of fixed size.
        num_spare_slots: Behind the others; nothing runs there, they only keep rows.
        budget_rows: That may hold something at once, over all slots. None: all of the slots that run.
        has_cheap_copies: Rows are copied from slot to slot in far less time than it takes to compute them.
        has_snapshots: States of fixed size are kept as prompts leave them at some tokens, where others may then begin.
        twice_bytes_per_slot: Of a slot's states that a run leaves elsewhere than it finds them, so that they are there
            twice.
    """

    num_slots: int
    capacity_tokens: int
    bytes_per_token: int
    bytes_per_slot: int = 0
    num_spare_slots: int = 0
    budget_rows: int | None = None
    has_cheap_copies: bool = True
    has_snapshots: bool = False
    twice_bytes_per_slot: int = 0

    @property
    def most_rows(self) -> int:
        """Rows that may hold something at once, over all slots."""
        return self.num_slots * self.capacity_tokens if self.budget_rows is None else self.budget_rows

    @property
    def total_bytes(self) -> int:
        """Bytes of all rows that may hold something, and of all states of fixed size; resident as they are written."""
        return self.most_rows * self.bytes_per_token + self.fixed_bytes

    @property
    def fixed_bytes(self) -> int:
        """Bytes of states of fixed size: of every slot, those that only keep among them, and all copies of each."""
        num_copies = 1 + (NUM_SNAPSHOTS if self.has_snapshots else 0)
        each_bytes = num_copies * self.bytes_per_slot + self.twice_bytes_per_slot
        return (self.num_slots + self.num_spare_slots) * each_bytes

    def __str__(self) -> str:
        """Return the line that is printed at start."""
        fixed = f" and {self.bytes_per_slot} B" if self.bytes_per_slot else ""
        weight = f"x {self.bytes_per_token} B/token{fixed} = {self.total_bytes / 2**20:.0f} MiB of cache"
        if self.budget_rows is None:
            return f"{self.num_slots} slots x {self.capacity_tokens} tokens {weight}"
        return f"{self.num_slots} slots of at most {self.capacity_tokens} tokens, together {self.budget_rows} {weight}"


def context_of(manifest: Manifest, wanted_tokens: int | None) -> int | None:
    """Return the rows of a slot; None without a decoder.

    Args:
        manifest: Whose decoder it is.
        wanted_tokens: None: the default, or all that the model holds where that is less.

    Raises:
        SettingsError: More are wanted than the model holds.
    """
    if manifest.decoder is None:
        return None
    limit = manifest.decoder.max_positions
    if wanted_tokens is None:
        return min(DEFAULT_CONTEXT_TOKENS, limit)
    if wanted_tokens > limit:
        raise SettingsError(
            f"context_tokens {wanted_tokens} is more than {manifest.name} holds, {limit}. Ask for {limit} or less."
        )
    return wanted_tokens


def cache_shape(manifest: Manifest, num_slots: int, capacity_tokens: int) -> CacheShape:
    """Return the cache of a model with so many slots of so many rows."""
    sizes = manifest.state_bytes_per_token, manifest.state_bytes_per_sequence
    is_hybrid = {state.kind for state in manifest.states} == {"rows", "fixed"}
    twice = sum(state.num_bytes for state in manifest.states if state.kind == "fixed")
    return CacheShape(num_slots, capacity_tokens, *sizes, has_snapshots=is_hybrid, twice_bytes_per_slot=twice)


def within(shape: CacheShape, budget_bytes: int | None, num_spare_slots: int, device: Provider) -> CacheShape:
    """Return a cache that is never larger than allowed.

    The host's memory becomes resident as rows are written: slots that are whole contexts cost nothing until then, and
    the limit counts rows. A device's memory is taken at start, all of it.

    Args:
        shape: As `cache_shape` gives it.
        budget_bytes: The limit. None: half of the slots on the host, but one whole context; none on a device.
        num_spare_slots: Slots that only keep rows, on the host.
        device: Where graphs run.

    Raises:
        SettingsError: The limit holds less than one short sequence, or on a device less than all slots.
    """
    if device != "cpu":
        shape = replace(shape, has_cheap_copies=False, has_snapshots=False)
        if budget_bytes is not None and shape.total_bytes > budget_bytes:
            raise SettingsError(
                f"{shape}; kv_memory_bytes allows {_mebibytes(budget_bytes)}, and {device} takes all of it at start. "
                "Lower max_sequences or context_tokens, or raise kv_memory_bytes."
            )
        return shape
    if not shape.bytes_per_token:
        return shape
    rows = max(shape.num_slots // _DEFAULT_SHARE, 1) * shape.capacity_tokens
    shape = replace(shape, num_spare_slots=num_spare_slots)
    if budget_bytes is not None:
        rows = (budget_bytes - shape.fixed_bytes) // shape.bytes_per_token
    if rows < _FEWEST_ROWS:
        raise SettingsError(
            f"kv_memory_bytes {budget_bytes} holds {max(rows, 0)} tokens at {shape.bytes_per_token} B each and "
            f"{shape.fixed_bytes} B of states beside them; the least is {_FEWEST_ROWS}. Raise it."
        )
    return replace(
        shape,
        capacity_tokens=min(shape.capacity_tokens, rows),
        budget_rows=min(rows, (shape.num_slots + num_spare_slots) * shape.capacity_tokens),
    )


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"
