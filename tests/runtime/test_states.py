from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bundle.errors import MachineError, SettingsError
from bundle.states import State
from runtime.cache_shape import CacheShape, cache_shape, context_of, within
from runtime.states import StateBuffers, empty_states

ROWS = State(input="k", output="k2", dtype="float32", shape=("B", 2, "S", 3), group=0)
OTHER_ROWS = State(input="v", output="v2", dtype="float16", shape=("B", "S", 4), group=1)
FIXED = State(input="conv", output="conv2", kind="fixed", dtype="float32", shape=("B", 5))
SHAPE = CacheShape(3, 6, 2 * 3 * 4 + 4 * 2, 5 * 4)


@pytest.fixture
def buffers() -> StateBuffers:
    """Three slots of six rows, every number of which says where it is."""
    made = StateBuffers((ROWS, OTHER_ROWS, FIXED), SHAPE, "cpu")
    for state in made.states:
        array = content(made, state)
        array[...] = np.arange(array.size).reshape(array.shape) % 512
    return made


def content(buffers: StateBuffers, state: State) -> np.ndarray:
    """Return the memory that a graph would be handed for all slots of a state."""
    _, _, dtype, sizes, address = buffers.place(state, 0, SHAPE.num_slots)
    size_bytes = int(np.prod(sizes)) * dtype.itemsize
    import ctypes

    return np.frombuffer((ctypes.c_char * size_bytes).from_address(address), dtype).reshape(sizes)


def test_a_range_of_slots_is_a_part_of_the_same_memory(buffers) -> None:
    _, _, _, sizes, address = buffers.place(ROWS, 1, 2)
    assert sizes == (2, 2, 6, 3)
    assert address - buffers.place(ROWS, 0, 1)[-1] == 2 * 6 * 3 * 4


def test_a_copy_takes_each_groups_rows_and_all_of_what_has_none(buffers) -> None:
    before = {state.input: content(buffers, state).copy() for state in buffers.states}
    buffers.copy(2, 0, [4, 1])
    keys, values, conv = (content(buffers, state) for state in buffers.states)
    np.testing.assert_array_equal(keys[0][:, :4], before["k"][2][:, :4])
    np.testing.assert_array_equal(keys[0][:, 4:], before["k"][0][:, 4:])
    np.testing.assert_array_equal(values[0][:1], before["v"][2][:1])
    np.testing.assert_array_equal(values[0][1:], before["v"][0][1:])
    np.testing.assert_array_equal(conv[0], before["conv"][2])
    for state in buffers.states:
        np.testing.assert_array_equal(content(buffers, state)[1:], before[state.input][1:])


def test_kept_rows_move_to_the_front_of_their_group_alone(buffers) -> None:
    before = {state.input: content(buffers, state).copy() for state in buffers.states}
    buffers.keep(1, 0, np.array([0, 5, 3]))
    np.testing.assert_array_equal(content(buffers, ROWS)[1][:, :3], before["k"][1][:, [0, 5, 3]])
    np.testing.assert_array_equal(content(buffers, OTHER_ROWS), before["v"])


def test_rows_are_left_where_they_are_found_and_a_fixed_state_elsewhere_until_it_is_taken_over(buffers) -> None:
    assert buffers.place_after(ROWS, 1, 2) == buffers.place(ROWS, 1, 2)
    before = content(buffers, FIXED).copy()
    assert buffers.place_after(FIXED, 0, 3)[-1] != buffers.place(FIXED, 0, 3)[-1]
    buffers.take_over(1, 1)  # a run over slot 1 left zeros
    assert not content(buffers, FIXED)[1].any()
    np.testing.assert_array_equal(content(buffers, FIXED)[[0, 2]], before[[0, 2]])


def test_a_device_without_memory_is_told_as_the_machines_lack(monkeypatch) -> None:
    def no_memory(*_: object) -> None:
        raise RuntimeError("CUDA failure 2: out of memory")

    runtime = SimpleNamespace(OrtValue=SimpleNamespace(ortvalue_from_numpy=no_memory))
    monkeypatch.setattr("runtime.fixed_run.onnx_runtime", lambda: runtime)
    with pytest.raises(MachineError, match=r"no room for the cache.*out of memory.*Lower max_sequences"):
        StateBuffers((ROWS,), SHAPE, "cuda")


def test_a_new_sequence_begins_with_zeros_where_states_have_no_rows(buffers) -> None:
    buffers.clear(1)
    assert not content(buffers, FIXED)[1].any()
    assert content(buffers, FIXED)[[0, 2]].all(axis=1).any()
    assert content(buffers, ROWS)[1].any()


def test_states_of_a_graph_that_runs_once_are_as_long_as_asked() -> None:
    made = empty_states((ROWS, FIXED), 2, 7)
    assert {name: array.shape for name, array in made.items()} == {"k": (2, 2, 7, 3), "conv": (2, 5)}


def test_the_cache_weighs_what_its_states_say() -> None:
    assert SHAPE.total_bytes == 3 * (6 * (24 + 8) + 20)
    assert str(SHAPE) == "3 slots x 6 tokens x 32 B/token and 20 B = 0 MiB of cache"


@pytest.mark.parametrize(
    ("asked", "model_limit", "given"), [(None, 8192, 4096), (None, 300, 300), (8192, 8192, 8192), (9, 8192, 9)]
)
def test_a_slot_is_never_longer_than_the_model_allows(tiny_model, asked, model_limit, given) -> None:
    dims = tiny_model.bundle.manifest.decoder.model_copy(update={"max_positions": model_limit})
    assert context_of(tiny_model.with_manifest(decoder=dims).bundle.manifest, asked) == given


def test_a_longer_slot_than_the_model_allows_is_refused_with_both_numbers(tiny_model) -> None:
    dims = tiny_model.bundle.manifest.decoder.model_copy(update={"max_positions": 8192})
    with pytest.raises(SettingsError, match="context_tokens 9000 is more than tiny holds, 8192"):
        context_of(tiny_model.with_manifest(decoder=dims).bundle.manifest, 9000)


def resident_bytes(address: int) -> int:
    """Return how much of the mapping that an address lies in is resident, by Linux's account."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        first, *others = line.split()
        if "-" in first and len(others) >= 4:
            start, end = (int(bound, 16) for bound in first.split("-"))
            is_here = start <= address < end
        elif first == "Rss:" and is_here:
            return int(others[0]) << 10
    raise AssertionError(f"{address:x} lies in no mapping")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="resident memory is read from Linux's /proc")
def test_memory_becomes_resident_as_rows_are_written_and_not_before() -> None:
    rows = 65_536  # 2 MiB per head: with huge pages, the first token of a slot would make all of it resident
    state = State(input="k", output="k2", dtype="float32", shape=("B", 2, "S", 8), group=0)
    large = StateBuffers([state], CacheShape(16, rows, 64), "cpu")
    assert large.shape.total_bytes == 64 << 20
    for slot in range(16):
        large.keep(slot, 0, np.array([0]))  # writes one row of each slot
    assert 0 < resident_bytes(large.place(state, 0, 16)[-1]) < 8 << 20


@pytest.mark.parametrize("capacity_tokens", [2**40, 2**60])
def test_a_cache_that_the_machine_cannot_hold_is_told_by_its_size(tiny_model, capacity_tokens) -> None:
    shape = cache_shape(tiny_model.bundle.manifest, 4, capacity_tokens)
    with pytest.raises(MachineError, match=rf"4 slots x {capacity_tokens} tokens .* Lower max_sequences"):
        StateBuffers(tiny_model.bundle.manifest.states, shape, "cpu")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="resident memory is read from Linux's /proc")
def test_rows_that_are_given_back_take_no_memory_and_the_others_stay() -> None:
    state = State(input="k", output="k2", dtype="float32", shape=("B", 2, "S", 8), group=0)
    rows = 65_536  # 2 MiB per head
    large = StateBuffers([state], CacheShape(3, rows, 64, num_spare_slots=1), "cpu")
    address = large.place(state, 0, 1)[-1]
    every = large._buffers["k"].read()
    every[...] = 1
    assert every.shape[0] == 4
    assert resident_bytes(address) == 16 << 20
    large.give_back(1, 100)
    assert resident_bytes(address) < (12 << 20) + 8 * 4096
    assert every[1, :, :100].all()
    assert every[[0, 2, 3]].all()
    large.give_back(3, 0)
    assert resident_bytes(address) < (8 << 20) + 8 * 4096
    assert every[[0, 2]].all()


GIVEN = CacheShape(4, 1000, 100, 50)


def test_a_cache_without_a_limit_of_its_own_may_fill_half_of_its_slots() -> None:
    shape = within(GIVEN, None, 5, "cpu")
    assert (shape.budget_rows, shape.capacity_tokens, shape.num_spare_slots) == (2000, 1000, 5)
    assert within(CacheShape(1, 1000, 100), None, 0, "cpu").budget_rows == 1000
    assert within(GIVEN, None, 5, "cuda") == replace(GIVEN, has_cheap_copies=False)


def test_a_limit_counts_rows_and_shortens_slots_that_it_cannot_hold() -> None:
    shape = within(GIVEN, 4 * 50 + 150_050, 0, "cpu")
    assert (shape.budget_rows, shape.capacity_tokens) == (1500, 1000)
    shape = within(GIVEN, 4 * 50 + 30_000, 0, "cpu")
    assert (shape.budget_rows, shape.capacity_tokens) == (300, 300)
    assert str(shape) == "4 slots of at most 300 tokens, together 300 x 100 B/token and 50 B = 0 MiB of cache"
    assert shape.total_bytes == 4 * 50 + 30_000


def test_a_limit_holds_what_is_kept_of_states_of_fixed_size_as_well() -> None:
    """In slots that only keep too, and at every place where others may begin."""
    shape = within(CacheShape(4, 8, 100, 50, has_snapshots=True), 2900, 2, "cpu")
    assert (shape.budget_rows, shape.total_bytes) == (20, 20 * 100 + (4 + 2) * 3 * 50)
    assert within(CacheShape(4, 8, 100, 50, has_snapshots=True), None, 0, "cuda").total_bytes == 32 * 100 + 4 * 50


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="resident memory is told by Linux alone")
@pytest.mark.parametrize("states", [(ROWS, OTHER_ROWS, FIXED), (ROWS,), (FIXED,)])
def test_a_cache_takes_what_its_shape_says(states, tiny_model) -> None:
    """States of fixed size are there twice, and as often again as they are kept."""
    manifest = tiny_model.bundle.manifest.model_copy(update={"states": states})
    shape = replace(cache_shape(manifest, 3, 6), num_spare_slots=1)
    made = StateBuffers(states, shape, "cpu")
    of_all = (made._buffers, made._after, *made._snapshots)
    taken = sum(buffer.read().nbytes for buffers in of_all for buffer in buffers.values())
    assert taken == 4 * 6 * shape.bytes_per_token + shape.fixed_bytes
    for each in of_all:
        for buffer in each.values():
            buffer.read()[...] = 1
    num_buffers = sum(map(len, of_all))
    assert taken <= made.resident_bytes <= taken + 4096 * num_buffers


def test_a_limit_that_holds_nothing_is_refused_with_the_numbers() -> None:
    with pytest.raises(SettingsError, match="kv_memory_bytes 300 holds 1 tokens at 100 B each and 200 B of states"):
        within(GIVEN, 300, 0, "cpu")


def test_a_device_must_hold_all_slots_at_once() -> None:
    assert within(GIVEN, 400_200, 9, "cuda") == replace(GIVEN, has_cheap_copies=False)
    with pytest.raises(SettingsError, match=r"4 slots x 1000 tokens.*kv_memory_bytes allows 0 MiB, and cuda takes all"):
        within(GIVEN, 400_199, 9, "cuda")
