"""What may still be taken is the machine's, or the container's where that is less."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.board import board_model, is_jetson
from devices.memory import available_bytes

MIB = 1 << 20


def machine(folder: Path, available_mib: int = 5000) -> Path:
    path = folder / "meminfo"
    path.write_text(f"MemTotal:        7802880 kB\nMemFree:  100 kB\nMemAvailable:    {available_mib * 1024} kB\n")
    return path


def container(folder: Path, limit: str, current: int, inactive: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nactive_file 9\n")
    return folder


@pytest.mark.parametrize(
    ("limit", "expected_mib"), [("max", 5000), (str(2000 * MIB), 2000 - 900 + 300), (str(9000 * MIB), 5000)]
)
def test_the_lesser_of_machine_and_container_counts(tmp_path: Path, limit: str, expected_mib: int) -> None:
    cgroup = container(tmp_path, limit, 900 * MIB, 300 * MIB)
    assert available_bytes(machine(tmp_path), cgroup) == expected_mib * MIB


def test_a_system_that_says_nothing_is_not_guessed_at(tmp_path: Path) -> None:
    assert available_bytes(tmp_path / "none", tmp_path) is None
    assert available_bytes(machine(tmp_path), tmp_path) == 5000 * MIB


def test_a_jetson_is_known_by_its_device_tree(tmp_path: Path) -> None:
    (tmp_path / "compatible").write_bytes(b"nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0")
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0")
    assert is_jetson(tmp_path / "compatible")
    assert (board_model(tmp_path / "model") or "").startswith("NVIDIA Jetson Orin Nano")
    (tmp_path / "compatible").write_bytes(b"raspberrypi,5-model-b\0brcm,bcm2712\0")
    assert not is_jetson(tmp_path / "compatible")
    assert not is_jetson(tmp_path / "none")
    assert board_model(tmp_path / "none") is None
