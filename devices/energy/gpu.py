"""An NVIDIA GPU's energy, by its driver: the counter of Volta and newer, or the integral of what it takes now."""

from __future__ import annotations

from typing import Protocol

from devices.energy.meter import Counted, Meter, MeterError, PowerIntegral
from devices.nvml import open_device

_COUNTER_PERIOD_S = 30.0
_POWER_PERIOD_S = 0.1


class GpuDevice(Protocol):
    """What is asked of `devices.nvml.NvmlDevice`."""

    def name(self) -> str | None:
        """Return what the driver calls it."""
        ...

    def energy_mj(self) -> int | None:
        """Return the energy since the driver was loaded."""
        ...

    def power_mw(self) -> int | None:
        """Return the power that it takes now."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class GpuMeter:
    """The device that CUDA shows this process.

    Args:
        device: Closed with the meter.

    Raises:
        MeterError: It tells neither energy nor power.
    """

    covers = "gpu"

    def __init__(self, device: GpuDevice) -> None:
        self._device = device
        self.name = f"NVML {device.name() or 'GPU'}"
        has_counter = device.energy_mj() is not None
        self.period_s = _COUNTER_PERIOD_S if has_counter else _POWER_PERIOD_S
        self._energy = Counted(self._energy_mj, 1e-3) if has_counter else PowerIntegral(self._watts)

    def joules(self) -> float:
        """Return the energy since construction."""
        return self._energy.joules()

    def close(self) -> None:
        """Let go of the driver."""
        self._device.close()

    def _energy_mj(self) -> int:
        if (value := self._device.energy_mj()) is None:
            raise MeterError(f"{self.name} no longer tells its energy")
        return value

    def _watts(self) -> float:
        if (value := self._device.power_mw()) is None:
            raise MeterError(f"{self.name} tells neither energy nor power")
        return value / 1e3


def find_gpu(device: GpuDevice | None = None) -> Meter | str:
    """Return the meter, or why there is none."""
    device = device or open_device()
    if device is None:
        return "no NVML: no driver, or no device that this process is shown"
    try:
        return GpuMeter(device)
    except MeterError as error:
        device.close()
        return str(error)
