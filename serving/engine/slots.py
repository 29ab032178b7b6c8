"""Slots of the cache: who sits where, and what the others still hold. Those that decode sit side by side from 0 on."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from itertools import count

from serving.engine.changes import Change, GiveBack, Load, Move, Restore, Snapshot
from serving.engine.prefixes import Kept, reusable_rows, shared_rows
from serving.engine.sequence import Sequence
from serving.engine_status import SlotState, SlotStatus

_COPIES_PER_LOST_ROW = 16
"""To run a token through a model takes as long as to copy 50 rows of it and more (docs/decisions/0015). Not every row
that is saved is asked for again."""


class Slots:
    """Seats of the running sequences, and rows of prompts that outlive theirs.

    A decode step runs over a range of slots, and a hole in it would be computed for nothing. So sequences that decode
    take the seats 0, 1, 2, ..., and where one of them leaves, the last moves into its place: one copy of its rows. A
    sequence whose prompt is running sits behind them.

    A slot that is left keeps the rows of its prompt until somebody needs the place, and even then they are set aside
    where a slot is free, or one holds what was not needed for longer. A prompt begins behind the rows that are here,
    which are copied to its seat from wherever they lie.

    Args:
        num_seats: Sequences that run at once.
        num_spare: Slots behind the seats, which only keep rows.
        keeps: Whether rows serve other sequences than their own, and outlive it.
        copies: Whether what is kept is copied from slot to slot; else it serves who gets the seat where it lies.
    """

    def __init__(self, num_seats: int, num_spare: int = 0, *, keeps: bool = True, copies: bool = True) -> None:
        self._num_seats = num_seats
        self._keeps = keeps
        self._copies = copies
        self._held: list[Kept | Sequence | None] = [None] * (num_seats + num_spare)
        self._written = [0] * len(self._held)
        self._decoding: list[Sequence] = []
        self._filling: Sequence | None = None
        self._changes: list[Change] = []
        self._uses = count()

    @property
    def decoding(self) -> tuple[Sequence, ...]:
        """Sequences that decode, by slot."""
        return tuple(self._decoding)

    @property
    def stepping(self) -> tuple[Sequence, ...]:
        """Those of them that take part in steps, by slot: all but a shadow that waits, which is the last."""
        return tuple(self._decoding[:-1] if self._decoding and self._decoding[-1].is_parked else self._decoding)

    @property
    def filling(self) -> Sequence | None:
        """The sequence whose prompt is running."""
        return self._filling

    @property
    def running(self) -> list[Sequence]:
        """All that have a slot."""
        return [*self._decoding, *([self._filling] if self._filling else [])]

    @property
    def has_room(self) -> bool:
        """True where a prompt can begin: none is running, and a seat is free."""
        return self.has_room_for(1)

    def has_room_for(self, num_seats: int) -> bool:
        """Return whether the first of so many prompts can begin, and the others find their seats behind it."""
        return self._filling is None and len(self._decoding) + num_seats <= self._num_seats

    @property
    def num_kept_rows(self) -> int:
        """Rows that are kept, of no running sequence."""
        return sum(len(held.keys) for held in self._held if isinstance(held, Kept))

    def statuses(self, now_s: float) -> tuple[SlotStatus, ...]:
        """Return what every slot is doing; callable from any thread, of which each slot may see another moment."""
        return tuple(_status(slot, held, self._filling, now_s) for slot, held in enumerate(list(self._held)))

    def seat(self, sequence: Sequence) -> None:
        """Give a sequence the slot behind those that decode, and what is here of its prompt.

        Raises:
            ValueError: There is no room.
        """
        if not self.has_room:
            raise ValueError(f"no slot for {sequence.request_id}: {len(self._decoding)} of {self._num_seats} decode")
        seat = len(self._decoding)
        source, num_rows = self._longest_prefix(sequence, seat)
        snapshots = self._snapshots(source)
        self._touch(source)
        if source != seat or self._is_worth_a_copy(seat, num_rows):
            self._set_aside(seat, source)
        if source != seat and num_rows:
            self._copy(source, seat, (num_rows,) * len(sequence.rows))
            self._forget_if_begun_by(sequence, source)
        self._filling = self._held[seat] = sequence
        sequence.slot = seat
        sequence.take_over(num_rows)
        if num_rows and snapshots is not None:
            self._changes.append(Restore(seat, snapshots.index(num_rows)))
            sequence.snapshots = [place if place <= num_rows else 0 for place in snapshots]
        if sequence.behind is not None:
            self._changes.append(Load(seat, sequence.behind))
            self._note_written(seat, sequence.num_rows)

    def settle(self) -> None:
        """Let the sequence whose prompt has been run decode with the others.

        Raises:
            ValueError: No prompt is running.
        """
        sequence = self._filling
        if sequence is None:
            raise ValueError("no prompt is running")
        self._filling = None
        self._reseat(sequence, len(self._decoding))
        self._decoding.append(sequence)

    def try_set_prompt_aside(self, sequence: Sequence, most_rows: int) -> None:
        """Copy the rows of a prompt, some of which are about to be dropped, to where others find them.

        Only where a slot and memory are free: nothing else is given up for them.

        Args:
            sequence: Whose prompt was read.
            most_rows: That may be resident at once, over all slots.
        """
        free = [slot for slot, held in enumerate(self._held) if held is None and slot >= self._num_seats]
        has_memory = sum(self._written) + sequence.num_prompt_tokens <= most_rows
        if sequence.slot is None or not (free and has_memory and self._copies):
            return
        if (kept := self._kept(sequence)) is not None:
            self._copy(sequence.slot, free[-1], kept.rows)
            self._held[free[-1]] = kept

    def shrink(self, sequence: Sequence) -> None:
        """Give back the memory of a running sequence's slot behind the rows that it holds."""
        if sequence.slot is None:
            raise ValueError(f"{sequence.request_id} has no slot")
        for group, rows in enumerate(sequence.rows):
            self._changes.append(GiveBack(sequence.slot, rows, group))
        self._written[sequence.slot] = sequence.num_rows

    def free(self, sequence: Sequence, *, keeps: bool = True) -> bool:
        """Take a sequence's slot away; False where it has none.

        Args:
            sequence: Whose slot is free now.
            keeps: Whether the rows of its prompt may be of use to others.
        """
        slot = sequence.slot
        if slot is None:
            return False
        self._note_written(slot, sequence.num_rows)
        self._held[slot] = self._kept(sequence) if keeps else None
        sequence.slot = None
        if sequence is self._filling:
            self._filling = None
            return True
        parked = self._decoding.pop() if self._decoding[-1].is_parked and self._decoding[-1] is not sequence else None
        last = self._decoding.pop()
        if last is not sequence:
            self._reseat(last, slot)
            self._decoding[slot] = last
        if parked is not None:  # it stays the last, for those before it run side by side
            self._reseat(parked, len(self._decoding))
            self._decoding.append(parked)
        return True

    def keep_states(self, sequence: Sequence) -> None:
        """Let the states of a running sequence be kept as they are now, where its prompt was read as far as a place.

        Args:
            sequence: Of a model whose states are kept.
        """
        place = sequence.num_run
        if place and sequence.slot is not None and sequence.snapshots and place in sequence.snapshot_places:
            number = sequence.snapshot_places.index(place)
            self._changes.append(Snapshot(sequence.slot, number))
            sequence.snapshots[number] = place

    def take_changes(self) -> tuple[Change, ...]:
        """Return what is due to be done to rows, in order; the caller does it before it runs anything."""
        changes, self._changes = tuple(self._changes), []
        return changes

    def add_change(self, change: Change) -> None:
        """Add something to be done to rows, behind what is due already."""
        self._changes.append(change)

    def try_fit(self, ends: Mapping[Sequence, int], most_rows: int) -> bool:
        """Free memory until running sequences can grow; False where all that is not theirs is not enough.

        What holds nothing goes first, then what was not needed for longest.

        Args:
            ends: How many rows each of some that run will hold.
            most_rows: That may be resident at once, over all slots.
        """
        in_use = [0 if held is None else max(held.rows, default=0) for held in self._held]
        for sequence, end in ends.items():
            if sequence.slot is not None:
                in_use[sequence.slot] = end
        self._written = list(map(max, self._written, in_use))
        for slot, num_rows in enumerate(in_use):
            if sum(self._written) <= most_rows:
                return True
            self._shrink(slot, num_rows)
        for slot in self._kept_slots():
            if sum(self._written) <= most_rows:
                return True
            self._drop(slot)
        return sum(self._written) <= most_rows

    def clear(self) -> None:
        """Forget all rows of sequences that have ended."""
        for slot in self._kept_slots():
            self._drop(slot)

    def _longest_prefix(self, sequence: Sequence, seat: int) -> tuple[int, int]:
        """Return the slot that holds most of a prompt's first rows, the seat itself among equals, and how many."""
        if not self._keeps:
            return seat, 0
        slots = range(len(self._held)) if self._copies else [seat]
        found = {
            slot: reusable_rows(sequence, shared_rows(self._held[slot], sequence.keys), self._snapshots(slot))
            for slot in slots
        }
        source = max(found, key=lambda slot: (found[slot], slot == seat))
        return source, found[source]

    def _touch(self, slot: int) -> None:
        """Record that what a slot keeps was needed now."""
        held = self._held[slot]
        if isinstance(held, Kept):
            held.used = next(self._uses)

    def _is_worth_a_copy(self, slot: int, num_rows: int) -> bool:
        """Return whether a slot holds so much behind its first rows that it is copied before those go on otherwise."""
        held = self._held[slot]
        return isinstance(held, Kept) and (len(held.keys) - num_rows) * _COPIES_PER_LOST_ROW > len(held.keys)

    def _set_aside(self, slot: int, spared: int) -> None:
        """Copy what a slot keeps to a free one, or over what was not needed for longer; else it is lost.

        Args:
            slot: A seat that somebody needs.
            spared: A slot that is not given up.
        """
        held, self._held[slot] = self._held[slot], None
        if not isinstance(held, Kept) or not self._copies:
            return
        free = [each for each, other in enumerate(self._held) if other is None and each != slot]
        older = [each for each in self._kept_slots() if each != spared and self._used(each) < held.used]
        if target := free[-1:] or older[:1]:
            self._copy(slot, target[0], held.rows)
            self._held[target[0]] = held

    def _forget_if_begun_by(self, sequence: Sequence, slot: int) -> None:
        """Forget what a slot keeps where a sequence that runs begins with all of it, and so will keep it."""
        held = self._held[slot]
        if self._snapshots(slot) is not None:
            return  # the states that it keeps are of other places than those that the sequence will keep
        if isinstance(held, Kept) and shared_rows(held, sequence.keys) == len(held.keys) <= sequence.num_prompt_tokens:
            self._held[slot] = None

    def _kept(self, sequence: Sequence) -> Kept | None:
        """Return what a sequence's slot keeps; None where it is nothing, or all of it is kept elsewhere."""
        keys = sequence.prompt_rows
        if not self._keeps or not keys:
            return None
        for slot, held in enumerate(self._held):
            num_shared = 0 if held is sequence else shared_rows(held, keys)
            own, others = {0, *(sequence.snapshots or ())}, {0, *(self._snapshots(slot) or ())}
            if num_shared == len(keys) and own <= others:
                self._touch(slot)
                return None
            if isinstance(held, Kept) and num_shared == len(held.keys) and others <= own:
                self._held[slot] = None
        snapshots = None if sequence.snapshots is None else tuple(sequence.snapshots)
        return Kept(keys, len(sequence.rows), next(self._uses), snapshots)

    def _snapshots(self, slot: int) -> SequenceOf[int] | None:
        """Return where the states of what a slot holds were kept; None where rows alone serve others."""
        held = self._held[slot]
        return None if held is None else held.snapshots

    def _reseat(self, sequence: Sequence, slot: int) -> None:
        """Let a running sequence have another slot, and its rows with it."""
        source = sequence.slot
        if source is not None and source != slot:
            self._set_aside(slot, slot)
            self._copy(source, slot, tuple(sequence.rows))
            self._held[source] = None
        self._held[slot] = sequence
        sequence.slot = slot

    def _copy(self, source: int, target: int, rows: tuple[int, ...]) -> None:
        self._changes.append(Move(source, target, rows))
        for slot in (source, target):
            self._note_written(slot, max(rows, default=0))

    def _note_written(self, slot: int, num_rows: int) -> None:
        self._written[slot] = max(self._written[slot], num_rows)

    def _shrink(self, slot: int, num_rows: int) -> None:
        """Give back the memory of a slot's rows but the first."""
        if self._written[slot] > num_rows:
            self._changes.append(GiveBack(slot, num_rows))
            self._written[slot] = num_rows

    def _drop(self, slot: int) -> None:
        self._held[slot] = None
        self._shrink(slot, 0)

    def _kept_slots(self) -> list[int]:
        """Return the slots that keep something, what was not needed for longest first."""
        return sorted((slot for slot, held in enumerate(self._held) if isinstance(held, Kept)), key=self._used)

    def _used(self, slot: int) -> int:
        held = self._held[slot]
        return held.used if isinstance(held, Kept) else -1


def _status(slot: int, held: Kept | Sequence | None, filling: Sequence | None, now_s: float) -> SlotStatus:
    if held is None:
        return SlotStatus(slot)
    if isinstance(held, Kept):
        return SlotStatus(slot, "kept", len(held.keys))
    state: SlotState = "decode" if held is not filling else "compress" if held.is_to_be_compressed else "prefill"
    return SlotStatus(
        slot,
        state,
        held.num_rows,
        held.request_id,
        held.num_prompt_tokens,
        held.num_output_tokens,
        held.cached_tokens or 0,
        held.num_kept_image_tokens,
        now_s - held.submitted_s,
    )
