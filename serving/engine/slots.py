"""Slots of the cache: who sits where. Sequences that decode sit side by side from slot 0 on."""

from __future__ import annotations

from dataclasses import dataclass

from serving.engine.sequence import Sequence


@dataclass(frozen=True)
class Move:
    """Rows of a sequence to be copied to another slot before anything runs.

    Attributes:
        source: Slot that the rows are in.
        target: Slot that they go to; what it held is lost.
        rows: [G] how many, of each length group.
    """

    source: int
    target: int
    rows: tuple[int, ...]


class Slots:
    """Seats of the running sequences.

    A decode step runs over a range of slots, and a hole in it would be computed for nothing. So sequences that decode
    take the seats 0, 1, 2, ..., and where one of them leaves, the last moves into its place: one copy of its rows. A
    sequence whose prompt is running sits behind them.

    Args:
        num_slots: How many there are.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._decoding: list[Sequence] = []
        self._filling: Sequence | None = None
        self._moves: list[Move] = []

    @property
    def decoding(self) -> tuple[Sequence, ...]:
        """Sequences that decode, by slot."""
        return tuple(self._decoding)

    @property
    def filling(self) -> Sequence | None:
        """The sequence whose prompt is running."""
        return self._filling

    @property
    def has_room(self) -> bool:
        """True where a prompt can begin: none is running, and a slot is free."""
        return self._filling is None and len(self._decoding) < self._num_slots

    def seat(self, sequence: Sequence) -> None:
        """Give a sequence the slot behind those that decode.

        Raises:
            ValueError: There is no room.
        """
        if not self.has_room:
            raise ValueError(f"no slot for {sequence.request_id}: {len(self._decoding)} of {self._num_slots} decode")
        self._filling = sequence
        sequence.slot = len(self._decoding)

    def settle(self) -> None:
        """Let the sequence whose prompt has been run decode with the others.

        Raises:
            ValueError: No prompt is running.
        """
        sequence = self._filling
        if sequence is None:
            raise ValueError("no prompt is running")
        self._filling = None
        self._put(sequence, len(self._decoding))
        self._decoding.append(sequence)

    def free(self, sequence: Sequence) -> bool:
        """Take a sequence's slot away; False where it has none."""
        if sequence is self._filling:
            self._filling = None
        elif sequence in self._decoding:
            last = self._decoding.pop()
            if last is not sequence:
                at = self._decoding.index(sequence)
                self._put(last, at)
                self._decoding[at] = last
        else:
            return False
        sequence.slot = None
        return True

    def take_moves(self) -> tuple[Move, ...]:
        """Return the copies that are due, in order; the caller makes them before it runs anything."""
        moves, self._moves = tuple(self._moves), []
        return moves

    def _put(self, sequence: Sequence, slot: int) -> None:
        if sequence.slot is not None and sequence.slot != slot:
            self._moves.append(Move(sequence.slot, slot, tuple(sequence.rows)))
        sequence.slot = slot
