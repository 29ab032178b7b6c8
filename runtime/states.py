"""The states of every slot of a model, in buffers of fixed address that its graphs write in place."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import MachineError
from bundle.states import State
from runtime.cache_codes import Float32, decode, encode
from runtime.cache_shape import CacheShape
from runtime.device.rows import Address, RowMover
from runtime.fixed_run import device_value
from runtime.graph import Array
from runtime.onnx_runtime import first_line
from runtime.settings import Provider

Place = tuple[str, int, Any, tuple[int, ...], int]
"""Device, its number, element type, shape, address: what ONNX Runtime binds."""


class _Buffer(ABC):
    """One state of all slots.

    Attributes:
        address: Of its first element.
    """

    address: int

    @abstractmethod
    def read(self) -> Array:
        """Return the content [slots, ...]; changes count once `write` was called."""

    @abstractmethod
    def write(self, content: Array) -> None:
        """Put back what `read` returned."""

    @abstractmethod
    def resident_bytes(self) -> int:
        """Return how much of it the machine holds in memory."""

    @abstractmethod
    def give_back(self, start: int, end: int) -> None:
        """Let the machine have memory again where it can be had a page at a time: elements `start ... end - 1`."""


class _HostBuffer(_Buffer):
    def __init__(self, sizes: tuple[int, ...], dtype: str) -> None:
        self._memory = _lazy_memory(math.prod(sizes) * np.dtype(dtype).itemsize)
        self._array = np.frombuffer(self._memory, dtype).reshape(sizes)
        self.address = self._array.ctypes.data

    def read(self) -> Array:
        return self._array

    def write(self, content: Array) -> None:
        """Do nothing: the content is the memory itself."""

    def resident_bytes(self) -> int:
        return _resident_bytes(self.address, self._array.nbytes)

    def give_back(self, start: int, end: int) -> None:
        """Return whole pages to the kernel; their next reader finds zeros."""
        size_bytes = self._array.itemsize
        first = -(-start * size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        behind = end * size_bytes // mmap.PAGESIZE * mmap.PAGESIZE
        if first < behind and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED, first, behind - first)


class _DeviceBuffer(_Buffer):
    """In a device's memory, where it is moved by `runtime.device.rows`."""

    def __init__(self, sizes: tuple[int, ...], dtype: str, device: Provider) -> None:
        self._value = device_value(np.zeros(sizes, dtype), device)
        self.address = self._value.data_ptr()

    def read(self) -> Array:
        """Return a copy, for tests: nothing that serves brings a cache to the host."""
        content: Array = self._value.numpy().copy()
        return content

    def write(self, content: Array) -> None:
        self._value.update_inplace(content)

    def resident_bytes(self) -> int:
        """Return all of it: a device's memory is taken whole."""
        return int(self._value.numpy().nbytes)

    def give_back(self, start: int, end: int) -> None:
        """Do nothing: a device's memory is taken whole."""


def _resident_bytes(address: int, size_bytes: int) -> int:
    """Return how much of a page-aligned stretch of memory is resident, by mincore(2).

    Raises:
        OSError: The kernel does not tell.
    """
    num_pages = -(-size_bytes // mmap.PAGESIZE)
    is_resident = np.zeros(num_pages, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    told = ctypes.c_void_p(is_resident.ctypes.data)
    if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes), told) != 0:
        raise OSError(ctypes.get_errno(), "mincore of the cache failed")
    return int((is_resident & 1).sum()) * mmap.PAGESIZE


def _lazy_memory(size_bytes: int) -> mmap.mmap:
    """Return zeros whose 4 KiB pages become resident when they are written, and not before.

    numpy asks the kernel for huge pages: one token per slot would then make most of the cache resident. Private memory
    can be given back; Python's own choice, shared memory, cannot.
    """
    if hasattr(mmap, "MAP_PRIVATE"):
        memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        memory = mmap.mmap(-1, size_bytes)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages refuses the advice and does not need it
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


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
        self._movers: dict[tuple[State, ...], RowMover] = {}
        self._slot_bytes = {
            state.input: math.prod(state.sizes(1, shape.capacity_tokens)) * np.dtype(state.dtype).itemsize
            for state in self.states
        }
        try:
            self._buffers = {state.input: self._allocated(state) for state in self.states}
            self._after = {state.input: self._allocated(state) for state in self.states if state.kind == "fixed"}
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
        return sum(buffer.resident_bytes() for buffer in self._buffers.values())

    @property
    def has_fixed(self) -> bool:
        """True where some state is as large whatever was read, and holds all of it."""
        return bool(self._fixed)

    def _allocated(self, state: State) -> _Buffer:
        sizes = state.sizes(self.shape.num_slots + self.shape.num_spare_slots, self.shape.capacity_tokens)
        if self._device == "cpu":
            return _HostBuffer(sizes, state.dtype)
        return _DeviceBuffer(sizes, state.dtype, self._device)

    def _zero(self, state: State) -> _Buffer:
        return _DeviceBuffer(state.sizes(1, 1), state.dtype, self._device)

    def _mover(self, states: tuple[State, ...]) -> RowMover | None:
        """Return what moves states in a device's memory; None where they are in the host's."""
        if self._device == "cpu" or not states:
            return None
        if states not in self._movers:
            self._movers[states] = RowMover(states, self.shape.capacity_tokens, self._device)
        return self._movers[states]

    def _slot(self, buffers: Mapping[str, _Buffer], slot: int) -> Address:
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

    def _place(self, buffer: _Buffer, state: State, first_slot: int, num_slots: int) -> Place:
        sizes = state.sizes(num_slots, self.shape.capacity_tokens)
        address = buffer.address + first_slot * self._slot_bytes[state.input]
        return self._device, 0, np.dtype(state.dtype), sizes, address

    def copy(self, source: int, target: int, lengths: Sequence[int]) -> None:
        """Copy a sequence from one slot to another.

        Args:
            source: Its slot.
            target: Another slot, whose content is lost.
            lengths: [G] rows to copy of each length group; states of fixed size are copied whole.
        """
        if (mover := self._mover(self.states)) is not None:
            mover.copy(self._slot(self._buffers, source), self._slot(self._buffers, target))
            return
        for state in self.states:
            buffer = self._buffers[state.input]
            content = buffer.read()
            rows = _rows(state, 0 if state.group is None else lengths[state.group])
            content[(target, *rows)] = content[(source, *rows)]
            buffer.write(content)

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
    """Return the index of a slot's first rows; of everything where a state has no rows."""
    if state.kind == "fixed":
        return ()
    return (*[slice(None)] * (state.row_axis - 1), slice(num_rows))


def _sizes_around_rows(state: State, capacity_rows: int) -> tuple[int, ...]:
    """Return the sizes of one slot of a state: those before the rows, the rows, and the product of those behind."""
    sizes, axis = state.sizes(1, capacity_rows), state.row_axis
    return (*sizes[:axis], sizes[axis], math.prod(sizes[axis + 1 :]))


def empty_states(states: Sequence[State], num_sequences: int, capacity_rows: int) -> dict[str, Array]:
    """Return the states of sequences that have not begun, by input name, for a graph that is run only once."""
    return {state.input: np.zeros(state.sizes(num_sequences, capacity_rows), state.dtype) for state in states}
