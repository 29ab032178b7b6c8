"""What is said of a device's memory before anything is put there."""

from __future__ import annotations

import logging

import pytest

from bundle.directory import Bundle
from bundle.errors import OutOfMemoryError
from bundle.manifest import Manifest
from runtime.cache_shape import cache_shape
from runtime.room import budget_of, check_room

MIB = 1 << 20


@pytest.fixture(scope="module")
def manifest(cuda_bundle: Bundle) -> Manifest:
    made = cuda_bundle.manifest
    heavy = {name: part.model_copy(update={"weight_bytes": 400 * MIB}) for name, part in made.components.items()}
    return made.model_copy(update={"components": heavy})


def shown(free: int | None, monkeypatch: pytest.MonkeyPatch, host: int | None = None, jetson: bool = False) -> None:
    """Let a device and the host have so much memory free."""
    monkeypatch.setattr("runtime.room.free_bytes", lambda: free)
    monkeypatch.setattr("runtime.room.available_bytes", lambda: host)
    monkeypatch.setattr("runtime.room.is_jetson", lambda: jetson)


def test_a_model_that_does_not_fit_is_refused_with_every_number(manifest: Manifest, monkeypatch) -> None:
    shown(1500 * MIB, monkeypatch)
    check_room(manifest, cache_shape(manifest, 4, 64), "cuda")  # 400 of weights, 660 beside them, a cache of 1
    shape = cache_shape(manifest, 1000, 4096)  # 2 layers x 2 x 2 heads x 16 x 2 bytes = 256 bytes a token: 1,000 MiB
    with pytest.raises(
        OutOfMemoryError, match=r"takes about 2,\d\d\d MiB on cuda, where 1,500 MiB are free.*400 MiB, .*captured"
    ):
        check_room(manifest, shape, "cuda")


def test_a_board_whose_gpu_shares_the_hosts_memory_is_judged_by_that(manifest: Manifest, monkeypatch) -> None:
    shape = cache_shape(manifest, 4, 64)
    shown(None, monkeypatch, host=1700 * MIB, jetson=True)
    check_room(manifest, shape, "cuda")
    shown(None, monkeypatch, host=900 * MIB, jetson=True)
    with pytest.raises(OutOfMemoryError, match="on cuda, where 900 MiB are free"):
        check_room(manifest, shape, "cuda")


def test_memory_of_host_and_gpu_in_one_holds_the_token_table_and_the_process_too(
    manifest: Manifest, monkeypatch
) -> None:
    shown(None, monkeypatch, host=2000 * MIB)
    apart = budget_of(manifest, None, "cuda")
    assert (apart.weights_bytes, apart.host_bytes) == (400 * MIB, (400 + 150) * MIB)  # embeddings are the other 400
    shown(None, monkeypatch, host=1500 * MIB, jetson=True)
    board = budget_of(manifest, None, "cuda")
    assert board.total_bytes == apart.total_bytes + apart.host_bytes
    with pytest.raises(OutOfMemoryError, match=r"takes about 1,610 MiB on cuda.*token table and process about 550 MiB"):
        check_room(manifest, None, "cuda")
    assert budget_of(manifest, None, "cpu").host_bytes == 0


def test_the_host_refuses_weights_that_do_not_fit_and_tells_of_a_cache_that_may_not(
    manifest: Manifest, monkeypatch, caplog
) -> None:
    shape = cache_shape(manifest, 1000, 4096)  # 1,000 MiB, if all of it is ever written
    num_graphs = len(manifest.components)
    shown(None, monkeypatch, host=num_graphs * 400 * MIB - 1)
    with pytest.raises(OutOfMemoryError, match=r"weights [\d,]+ MiB, cache 1,000 MiB \(1000 slots of 4096 tokens\)"):
        check_room(manifest, shape, "cpu")
    shown(None, monkeypatch, host=num_graphs * 400 * MIB + 500 * MIB)
    with caplog.at_level(logging.WARNING):
        check_room(manifest, shape, "cpu")
    assert "when that much is asked for, the system swaps or ends it" in caplog.text
    caplog.clear()
    shown(None, monkeypatch, host=num_graphs * 600 * MIB + 2000 * MIB)
    with caplog.at_level(logging.WARNING):
        check_room(manifest, shape, "cpu")
    assert caplog.text == ""


def test_only_bundles_that_engines_are_built_of_take_memory_for_that(manifest: Manifest) -> None:
    assert budget_of(manifest, None, "cuda").build_bytes == 0
    portable = manifest.model_copy(update={"dialect": "portable"})
    budget = budget_of(portable, None, "cuda")
    assert budget.build_bytes == 3 * budget.weights_bytes + 280 * MIB
    assert budget.peak_bytes == max(budget.build_bytes, budget.total_bytes)


def test_the_host_and_a_device_that_tells_nothing_refuse_nothing(manifest: Manifest, monkeypatch, caplog) -> None:
    shown(0, monkeypatch)
    check_room(manifest, cache_shape(manifest, 1000, 4096), "cpu")
    shown(None, monkeypatch)
    with caplog.at_level(logging.WARNING):
        check_room(manifest, cache_shape(manifest, 1000, 4096), "cuda")
    assert "cannot be told" in caplog.text
