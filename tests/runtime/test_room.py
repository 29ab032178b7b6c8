"""What is said of a device's memory before anything is put there."""

from __future__ import annotations

import logging

import pytest

from bundle.directory import Bundle
from bundle.errors import OutOfMemoryError
from bundle.manifest import Manifest
from runtime.cache_shape import cache_shape
from runtime.room import check_room

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
