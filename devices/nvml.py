"""NVIDIA's management library (NVML), as far as it is asked here: memory, energy, throttling of one device.

It comes with the driver and is opened by name; no package is needed. Every question may be answered with None: older
cards, and boards whose driver has no such library, do not tell everything.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

_LIBRARY = "libnvidia-ml.so.1"
_MOST_NAME_BYTES = 96
_GPU_SENSOR = 0
THROTTLE_REASONS = {
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "too hot (software)",
    0x40: "too hot (hardware)",
    0x80: "power brake",
}
"""Bits of nvmlClocksEventReasons that tell of a device which is held back; idle and set clocks are no such thing."""


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class NvmlDevice:
    """The first device that CUDA shows this process; closed by whoever opened it.

    Args:
        library: NVML, initialized.
        handle: Its own, of the device.
    """

    def __init__(self, library: Any, handle: ctypes.c_void_p) -> None:
        self._library = library
        self._handle = handle

    def close(self) -> None:
        """Let go of the library."""
        self._library.nvmlShutdown()

    def free_bytes(self) -> int | None:
        """Return the free memory."""
        memory = _Memory()
        if self._library.nvmlDeviceGetMemoryInfo(self._handle, ctypes.byref(memory)):
            return None
        return int(memory.free)

    def name(self) -> str | None:
        """Return what the driver calls the device."""
        text = ctypes.create_string_buffer(_MOST_NAME_BYTES)
        if self._library.nvmlDeviceGetName(self._handle, text, ctypes.c_uint(_MOST_NAME_BYTES)):
            return None
        return text.value.decode(errors="replace")

    def compute_capability(self) -> str | None:
        """Return the device's compute capability, such as "8.7"."""
        ask = getattr(self._library, "nvmlDeviceGetCudaComputeCapability", None)  # boards have part of the library
        major, minor = ctypes.c_int(), ctypes.c_int()
        if ask is None or ask(self._handle, ctypes.byref(major), ctypes.byref(minor)):
            return None
        return f"{major.value}.{minor.value}"

    def driver_version(self) -> str | None:
        """Return the driver's version."""
        ask = getattr(self._library, "nvmlSystemGetDriverVersion", None)
        text = ctypes.create_string_buffer(_MOST_NAME_BYTES)
        if ask is None or ask(text, ctypes.c_uint(_MOST_NAME_BYTES)):
            return None
        return text.value.decode(errors="replace")

    def energy_mj(self) -> int | None:
        """Return the energy taken since the driver was loaded, in millijoules; Volta and newer tell it."""
        return self._number(self._library.nvmlDeviceGetTotalEnergyConsumption, ctypes.c_ulonglong())

    def power_mw(self) -> int | None:
        """Return the power that it takes now, in milliwatts, averaged by the device itself."""
        return self._number(self._library.nvmlDeviceGetPowerUsage, ctypes.c_uint())

    def celsius(self) -> int | None:
        """Return the temperature of the chip."""
        value = ctypes.c_uint()
        failed = self._library.nvmlDeviceGetTemperature(self._handle, ctypes.c_uint(_GPU_SENSOR), ctypes.byref(value))
        return None if failed else int(value.value)

    def throttle_reasons(self) -> tuple[str, ...]:
        """Return why its clocks are held back now, in words; empty where they are not, or nothing is told."""
        bits = self._number(self._library.nvmlDeviceGetCurrentClocksThrottleReasons, ctypes.c_ulonglong()) or 0
        return tuple(words for bit, words in THROTTLE_REASONS.items() if bits & bit)

    def _number(self, ask: Callable[..., int], value: Any) -> int | None:
        return None if ask(self._handle, ctypes.byref(value)) else int(value.value)


def open_device() -> NvmlDevice | None:
    """Return the device that a process of ours is given; None without a driver, or where it shows none."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:  # no driver, or a board whose driver has no such library
        return None
    if library.nvmlInit_v2():
        return None
    handle = _shown(library)
    if handle is None:
        library.nvmlShutdown()
        return None
    return NvmlDevice(library, handle)


def free_bytes() -> int | None:
    """Return the free memory of the device that a process of ours is given; None where the driver does not say."""
    device = open_device()
    if device is None:
        return None
    try:
        return device.free_bytes()
    finally:
        device.close()


def _shown(library: Any) -> ctypes.c_void_p | None:
    """Return the library's handle of the first device that CUDA shows this process."""
    handle = ctypes.c_void_p()
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if shown.isdecimal():
        failed = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(shown)), ctypes.byref(handle))
    else:
        failed = library.nvmlDeviceGetHandleByUUID(shown.encode(), ctypes.byref(handle))
    return None if failed else handle
