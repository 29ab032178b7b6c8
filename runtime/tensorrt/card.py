"""The card of this machine, as far as it decides what an engine is."""

from __future__ import annotations

from dataclasses import dataclass

from devices.board import board_model
from devices.nvml import open_device

_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Card:
    """The first device that a process of ours is given.

    Attributes:
        name: As the driver calls it, and a board itself; "unknown" where neither says.
        capability: Its compute capability, such as "8.7"; "unknown" likewise.
        driver: The driver's version; "unknown" likewise.
    """

    name: str = _UNKNOWN
    capability: str = _UNKNOWN
    driver: str = _UNKNOWN

    def __str__(self) -> str:
        """Return name and compute capability, which engines of TensorRT are built for."""
        return f"{self.name}, {self.capability}"


def card_here() -> Card:
    """Return the card of this machine."""
    board, device = board_model(), open_device()
    if device is None:
        return Card(board or _UNKNOWN)
    try:
        names = [name for name in (device.name(), board) if name]
        return Card(
            " of ".join(names) or _UNKNOWN, device.compute_capability() or _UNKNOWN, device.driver_version() or _UNKNOWN
        )
    finally:
        device.close()
