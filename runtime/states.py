"""The states of every slot of a model, in buffers of fixed address that its graphs write in place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import MachineError, SignatureError
from bundle.states import State
from runtime.cache_codes import Float32, decode, encode
from runtime.cache_shape import NUM_SNAPSHOTS, CacheShape
from runtime.device.rows import Address, RowMover
from runtime.graph import Array
from runtime.memory import remembered
from runtime.onnx_runtime import first_line
from runtime.settings import Provider
from runtime.state_memory import Buffer, DeviceBuffer, HostBuffer

Place = tuple[str, int, Any, tuple[int, ...], int]
"""Device, its number, element type, shape, address: what ONNX Runtime binds."""


class StateBuffers:
    """Buffers of a model's states over its slots. Neighbouring slots are neighbours in memory.

    Args:
        states: Of the manifest.
        shape: Slots and their length.
        device: Where graphs run.
        scales: Of states of codes, as `bundle.cache_scales` loads them.

    Raises:
        MachineError: The buffers are larger than what the machine can promise.
    """

    def __init__(
        self,
        states: Sequence[State],
        shape: CacheShape,
        device: Provider,
        scales: Mapping[str, Float32] | None = None,
    ) -> None:
        self.states = tuple(states)
        self.shape = shape
        self._device = device
        self._scales = dict(scales or {})
        self._fixed = tuple(state for state in self.states if state.kind == "fixed")
        self._memories = tuple(state for state in self.states if state.kind == "memory")
        self._memory_rows = [0] * (shape.num_slots + shape.num_spare_slots)
        if self._memories and device != "cpu":
            raise MachineError(
                f"{self._memories[0].input} is memory of images, which is built for a host; the provider is {device}. "
                "Serve with --provider cpu"
            )
        self._movers: dict[tuple[State, ...], RowMover] = {}
        self._slot_bytes = {
            state.input: math.prod(state.sizes(1, shape.capacity_tokens)) * np.dtype(state.dtype).itemsize
            for state in self.states
        }
        try:
            self._buffers = {state.input: self._allocated(state) for state in self.states}
            self._after = {state.input: self._allocated(state) for state in self.states if state.kind == "fixed"}
            has_snapshots = shape.has_snapshots and device == "cpu"
            self._snapshots = [
                {state.input: self._allocated(state) for state in self._fixed}
                for _ in range(NUM_SNAPSHOTS if has_snapshots else 0)
            ]
            self._zeros = {} if device == "cpu" else {state.input: self._zero(state) for state in self._fixed}
        except Exception as error:  # a device's errors are ONNX Runtime's, the host's OSError and OverflowError
            raise MachineError(
                f"this machine has no room for the cache, {shape}: {first_line(error)}. Lower max_sequences or "
                "context_tokens."
            ) from error
        self._mover(self.states)  # opened now, not while somebody waits

    @property
    def resident_bytes(self) -> int:
        """Memory that all slots take now, to the page.

        Raises:
            OSError: This system does not tell.
        """
        copies = (self._buffers, self._after, *self._snapshots)
        return sum(buffer.resident_bytes() for of_all in copies for buffer in of_all.values())

    @property
    def has_fixed(self) -> bool:
        """True where some state is as large whatever was read, and holds all of it."""
        return bool(self._fixed or self._memories)

    def _allocated(self, state: State) -> Buffer:
        sizes = state.sizes(self.shape.num_slots + self.shape.num_spare_slots, self.shape.capacity_tokens)
        if self._device == "cpu":
            return HostBuffer(sizes, state.dtype)
        return DeviceBuffer(sizes, state.dtype, self._device)

    def _zero(self, state: State) -> Buffer:
        return DeviceBuffer(state.sizes(1, 1), state.dtype, self._device)

    def _mover(self, states: tuple[State, ...]) -> RowMover | None:
        """Return what moves states in a device's memory; None where they are in the host's."""
        if self._device == "cpu" or not states:
            return None
        if states not in self._movers:
            self._movers[states] = RowMover(states, self.shape.capacity_tokens, self._device)
        return self._movers[states]

    def _slot(self, buffers: Mapping[str, Buffer], slot: int) -> Address:
        return lambda state: buffers[state.input].address + slot * self._slot_bytes[state.input]

    def place(self, state: State, first_slot: int, num_slots: int) -> Place:
        """Return where a graph finds a range of slots of a state, as one tensor of that batch."""
        return self._place(self._buffers[state.input], state, first_slot, num_slots)

    def place_after(self, state: State, first_slot: int, num_slots: int) -> Place:
        """Return where a graph leaves a range of slots of a state.

        Rows are written where they stay. A state of fixed size is written elsewhere: some operator of the graph may
        read the old one after another has written the new.
        """
        return self._place(self._after.get(state.input, self._buffers[state.input]), state, first_slot, num_slots)

    def take_over(self, first_slot: int, num_slots: int) -> None:
        """Let what a run left of states of fixed size be what the next one finds."""
        if (mover := self._mover(self._fixed)) is not None:
            for slot in range(first_slot, first_slot + num_slots):
                mover.copy(self._slot(self._after, slot), self._slot(self._buffers, slot))
            return
        written = slice(first_slot, first_slot + num_slots)
        for name, after in self._after.items():
            content = self._buffers[name].read()
            content[written] = after.read()[written]
            self._buffers[name].write(content)

    def _place(self, buffer: Buffer, state: State, first_slot: int, num_slots: int) -> Place:
        sizes = state.sizes(num_slots, self.shape.capacity_tokens)
        address = buffer.address + first_slot * self._slot_bytes[state.input]
        return self._device, 0, np.dtype(state.dtype), sizes, address

    def copy(self, source: int, target: int, lengths: Sequence[int]) -> None:
        """Copy a sequence from one slot to another.

        Args:
            source: Its slot.
            target: Another slot, whose content is lost.
            lengths: [G] rows to copy of each length group; states of fixed size are copied whole, memory as far as it
                is filled, and what was kept of fixed ones.
        """
        self._memory_rows[target] = self._memory_rows[source]
        if (mover := self._mover(self.states)) is not None:
            mover.copy(self._slot(self._buffers, source), self._slot(self._buffers, target))
            return
        for state in self.states:
            buffer = self._buffers[state.input]
            content = buffer.read()
            held = self._memory_rows[source] if state.group is None else lengths[state.group]
            rows = _rows(state, held)
            content[(target, *rows)] = content[(source, *rows)]
            buffer.write(content)

        for snapshot in (each for of_all in self._snapshots for each in of_all.values()):
            content = snapshot.read()
            content[target] = content[source]

    def snapshot(self, slot: int, number: int) -> None:
        """Keep a slot's states of fixed size as they are now, in a host's memory."""
        for name, snapshot in self._snapshots[number].items():
            snapshot.read()[slot] = self._buffers[name].read()[slot]

    def restore(self, slot: int, number: int) -> None:
        """Let a slot's states of fixed size be what they were when they were kept."""
        for name, snapshot in self._snapshots[number].items():
            self._buffers[name].read()[slot] = snapshot.read()[slot]

    def keep(self, slot: int, group: int, kept: npt.NDArray[np.int64]) -> None:
        """Drop all rows of a length group but some, which move to the front in the order given.

        Args:
            slot: Of the sequence.
            group: The length group.
            kept: Row numbers, each at most once.
        """
        grouped = tuple(state for state in self.states if state.group == group)
        if (mover := self._mover(grouped)) is not None:
            mover.keep(self._slot(self._buffers, slot), kept)
            return
        for state in self.states:
            if state.group == group:
                buffer = self._buffers[state.input]
                content = buffer.read()
                content[slot][_rows(state, len(kept))] = content[slot].take(kept, axis=state.row_axis - 1)
                buffer.write(content)

    def stored(self, slot: int, rows: npt.NDArray[np.int64]) -> dict[str, Array]:
        """Return some rows of a slot as they are stored, of every state by its input; new arrays.

        Args:
            slot: Of the sequence, in a host's memory; it has no state of fixed size.
            rows: Their numbers, of every length group.
        """
        return {
            state.input: self._buffers[state.input].read()[slot].take(rows, axis=state.row_axis - 1)
            for state in self.states
        }

    def put(self, slot: int, stored: Mapping[str, Array]) -> None:
        """Let a slot in a host's memory begin with rows that `stored` returned."""
        for state in self.states:
            rows = stored[state.input]
            self._buffers[state.input].read()[slot][_rows(state, rows.shape[state.row_axis - 1])] = rows

    def rows_as_float(self, state: State, slot: int, num_rows: int) -> Float32:
        """Return a slot's first rows as numbers, whatever they are stored as.

        Args:
            state: Of kind "rows".
            slot: Of the sequence.
            num_rows: n, that it holds.
        Returns:
            The state's shape without B, S being n: [K, n, C] of keys and values; float32, a new array.
        """
        stored = self._buffers[state.input].read()[slot][_rows(state, num_rows)]
        if state.scheme == "float":
            return np.array(stored, np.float32)
        return decode(stored, self._along_rows(state), state.scheme)

    def write_rows(self, state: State, slot: int, rows: Float32) -> None:
        """Write numbers over a slot's first rows, rounded to what they are stored as.

        Rows that `rows_as_float` returned and nobody changed become the same codes again.

        Args:
            state: Of kind "rows".
            slot: Of the sequence.
            rows: As `rows_as_float` returns them.
        """
        buffer = self._buffers[state.input]
        content = buffer.read()
        stored = rows if state.scheme == "float" else encode(rows, self._along_rows(state), state.scheme)
        content[slot][_rows(state, rows.shape[state.row_axis - 1])] = stored
        buffer.write(content)

    def _along_rows(self, state: State) -> Float32:
        """Return the scales of a state of codes as they broadcast over one slot's rows."""
        return np.expand_dims(self._scales[state.input], state.row_axis - 1)

    def keep_rows(self, state: State, slot: int, kept: npt.NDArray[np.int64]) -> None:
        """Drop all rows of a layer's keys or values but some, which move to the front.

        Args:
            state: Of a host.
            slot: Of the sequence.
            kept: [K, n] row numbers, each head's own.
        """
        content = self._buffers[state.input].read()[slot]
        content[:, : kept.shape[1]] = np.take_along_axis(content, kept[..., None], axis=1)

    def give_back(self, slot: int, first_row: int, group: int | None = None) -> None:
        """Let the machine have the memory of a slot's rows again, from one on; what they held is lost.

        Args:
            slot: Of the sequence.
            first_row: From this one on.
            group: The length group; None: all.
        """
        for state in self.states:
            if state.kind == "rows" and group in (None, state.group):
                _, *before, rows, after = _sizes_around_rows(state, self.shape.capacity_tokens)
                blocks = math.prod(before)
                for block in range(slot * blocks, (slot + 1) * blocks):
                    start = block * rows * after
                    self._buffers[state.input].give_back(start + first_row * after, start + rows * after)

    def fill(self, slot: int, memory: Array | None) -> None:
        """Write image features into a slot's states of kind "memory", before its sequence begins.

        Args:
            slot: Of the sequence, in a host's memory.
            memory: [R, W] rows of features; None: its tokens see none.

        Raises:
            SignatureError: The states have no room for so many rows, or the model has no such states.
        """
        if memory is None:
            return
        if not self._memories:
            raise SignatureError("image features for memory, and the bundle has no state of that kind")
        self._memory_rows[slot] = len(memory)
        for state in self._memories:
            self._buffers[state.input].read()[slot][_rows(state, len(memory))] = remembered(state, memory)

    def clear(self, slot: int) -> None:
        """Make a slot's states of fixed size zero, as they are before a sequence begins; rows count by lengths."""
        if (mover := self._mover(self._fixed)) is not None:
            mover.copy(self._slot(self._zeros, 0), self._slot(self._buffers, slot))
            return
        for state in self.states:
            if state.kind == "fixed":
                buffer = self._buffers[state.input]
                content = buffer.read()
                content[slot] = 0
                buffer.write(content)


def _rows(state: State, num_rows: int) -> tuple[Any, ...]:
    """Return the index of a slot's first rows, be they tokens' or features'; of everything where there are none."""
    if state.kind == "fixed":
        return ()
    if state.memory is not None:
        return (*[slice(None)] * (state.memory.row_axis - 1), slice(num_rows))
    return (*[slice(None)] * (state.row_axis - 1), slice(num_rows))


def _sizes_around_rows(state: State, capacity_rows: int) -> tuple[int, ...]:
    """Return the sizes of one slot of a state: those before the rows, the rows, and the product of those behind."""
    sizes, axis = state.sizes(1, capacity_rows), state.row_axis
    return (*sizes[:axis], sizes[axis], math.prod(sizes[axis + 1 :]))


def empty_states(states: Sequence[State], num_sequences: int, capacity_rows: int) -> dict[str, Array]:
    """Return the states of sequences that have not begun, by input name, for a graph that is run only once."""
    return {state.input: np.zeros(state.sizes(num_sequences, capacity_rows), state.dtype) for state in states}
