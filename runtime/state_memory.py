"""Memory of one state of all slots: a host's, which becomes resident as it is written, or a device's, taken whole."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from abc import ABC, abstractmethod

import numpy as np

from runtime.fixed_run import device_value
from runtime.graph import Array, device_gate
from runtime.settings import Provider


class Buffer(ABC):
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


class HostBuffer(Buffer):
    """In a host's memory, resident as it is written."""

    def __init__(self, sizes: tuple[int, ...], dtype: str) -> None:
        self._memory = _lazy_memory(math.prod(sizes) * np.dtype(dtype).itemsize)
        self._array = np.frombuffer(self._memory, dtype).reshape(sizes)
        self.address = self._array.ctypes.data

    def read(self) -> Array:
        """Return the memory itself."""
        return self._array

    def write(self, content: Array) -> None:
        """Do nothing: the content is the memory itself."""

    def resident_bytes(self) -> int:
        """Return how much of it was written, by pages."""
        return _resident_bytes(self.address, self._array.nbytes)

    def give_back(self, start: int, end: int) -> None:
        """Return whole pages to the kernel; their next reader finds zeros."""
        size_bytes = self._array.itemsize
        first = -(-start * size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        behind = end * size_bytes // mmap.PAGESIZE * mmap.PAGESIZE
        if first < behind and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED, first, behind - first)


class DeviceBuffer(Buffer):
    """In a device's memory, where it is moved by `runtime.device.rows`."""

    def __init__(self, sizes: tuple[int, ...], dtype: str, device: Provider) -> None:
        self._device: Provider = device
        self._value = device_value(np.zeros(sizes, dtype), device)
        self.address = self._value.data_ptr()
        self._num_bytes = math.prod(sizes) * np.dtype(dtype).itemsize

    def read(self) -> Array:
        """Return a copy, for tests: nothing that serves brings a cache to the host."""
        with device_gate(self._device):
            content: Array = self._value.numpy().copy()
        return content

    def write(self, content: Array) -> None:
        """Copy all of it to the device."""
        with device_gate(self._device):
            self._value.update_inplace(content)

    def resident_bytes(self) -> int:
        """Return all of it: a device's memory is taken whole."""
        return self._num_bytes

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
