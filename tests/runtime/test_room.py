"""What is said of a device's memory before anything is put there."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from typing import Any

import pytest

from bundle.directory import Bundle
from bundle.errors import OutOfMemoryError
from bundle.manifest import Manifest
from runtime.cache_shape import cache_shape
from runtime.room import check_room, free_bytes

MIB = 1 << 20


@pytest.fixture(scope="module")
def manifest(cuda_bundle: Bundle) -> Manifest:
    made = cuda_bundle.manifest
    heavy = {name: part.model_copy(update={"weight_bytes": 400 * MIB}) for name, part in made.components.items()}
    return made.model_copy(update={"components": heavy})


def shown(free: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.room.free_bytes", lambda: free)


def test_a_model_that_does_not_fit_is_refused_with_every_number(manifest: Manifest, monkeypatch) -> None:
    shown(1500 * MIB, monkeypatch)
    check_room(manifest, cache_shape(manifest, 4, 64), "cuda")  # 400 of weights, 660 beside them, a cache of 1
    shape = cache_shape(manifest, 1000, 4096)  # 2 layers x 2 x 2 heads x 16 x 2 bytes = 256 bytes a token: 1,000 MiB
    with pytest.raises(OutOfMemoryError, match=r"takes about 2,060 MiB on cuda, where 1,500 MiB are free.*400 MiB"):
        check_room(manifest, shape, "cuda")


def test_the_host_and_a_device_that_tells_nothing_refuse_nothing(manifest: Manifest, monkeypatch, caplog) -> None:
    shown(0, monkeypatch)
    check_room(manifest, cache_shape(manifest, 1000, 4096), "cpu")
    shown(None, monkeypatch)
    with caplog.at_level(logging.WARNING):
        check_room(manifest, cache_shape(manifest, 1000, 4096), "cuda")
    assert "cannot be told" in caplog.text


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
    monkeypatch.setattr("runtime.room._NVML", str(tmp_path / "libnvidia-ml.so.1"))
    assert free_bytes() is None
