"""The driver's own library is asked about the device that this process is shown."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from devices.nvml import NvmlDevice, free_bytes, open_device


class Driver:
    """NVML as far as it is asked: two devices, the second with more free memory."""

    def __init__(self) -> None:
        self.is_open = 0

    def nvmlInit_v2(self) -> int:
        self.is_open += 1
        return 0

    def nvmlShutdown(self) -> int:
        self.is_open -= 1
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        handle._obj.value = 100 + index.value
        return 0 if index.value < 2 else 6

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:
        handle._obj.value = 101
        return 0 if uuid == b"GPU-second" else 6

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        memory._obj.free = {100: 7, 101: 9}[handle.value]
        return 0

    def nvmlDeviceGetName(self, handle: Any, text: Any, length: Any) -> int:
        text.value = b"NVIDIA H200"
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = 9, 0
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, length: Any) -> int:
        text.value = b"570.86.15"
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, energy_mj: Any) -> int:
        return 3  # NVML_ERROR_NOT_SUPPORTED, as before Volta

    def nvmlDeviceGetPowerUsage(self, handle: Any, power_mw: Any) -> int:
        power_mw._obj.value = 76_450
        return 0

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: Any, celsius: Any) -> int:
        celsius._obj.value = 41 + sensor.value
        return 0

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any, bits: Any) -> int:
        bits._obj.value = 0x01 | 0x04 | 0x40
        return 0


@pytest.mark.parametrize(
    ("visible", "free"), [(None, 7), ("1", 9), ("1,0", 9), ("GPU-second", 9), ("7", None), ("", None), ("-1", None)]
)
def test_the_device_asked_is_the_one_that_cuda_shows_this_process(visible, free, monkeypatch) -> None:
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert free_bytes() == free
    assert driver.is_open == 0


def test_a_machine_without_the_driver_tells_nothing(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("devices.nvml._LIBRARY", str(tmp_path / "libnvidia-ml.so.1"))
    assert free_bytes() is None


def test_a_device_tells_its_name_power_heat_and_what_holds_it_back(monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    device = open_device()
    assert isinstance(device, NvmlDevice)
    assert (device.name(), device.power_mw(), device.celsius()) == ("NVIDIA H200", 76_450, 41)
    assert (device.compute_capability(), device.driver_version()) == ("9.0", "570.86.15")
    assert device.energy_mj() is None
    assert device.throttle_reasons() == ("power limit", "too hot (hardware)")
