"""Which board this is, as far as its device tree says: an NVIDIA Jetson's GPU shares the machine's memory."""

from __future__ import annotations

from pathlib import Path

_MODEL = Path("/proc/device-tree/model")
_COMPATIBLE = Path("/proc/device-tree/compatible")
_TEGRA = b"nvidia,tegra"


def board_model(path: Path = _MODEL) -> str | None:
    """Return what a board calls itself, such as "NVIDIA Jetson Orin Nano Developer Kit"; None on other machines."""
    try:
        return path.read_bytes().rstrip(b"\0\n").decode(errors="replace") or None
    except OSError:
        return None


def is_jetson(path: Path = _COMPATIBLE) -> bool:
    """Return whether the chip is one of NVIDIA's Tegras, as every Jetson's is."""
    try:
        return _TEGRA in path.read_bytes()
    except OSError:
        return False
