"""Slots that a graph moves, against the same moves made on the host."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bundle.states import State
from runtime.cache_shape import CacheShape
from runtime.device.gather_graph import Gathered, gather_graph
from runtime.device.rows import RowMover
from runtime.states import StateBuffers

KEYS = State(input="k", output="k_after", dtype="float16", shape=("B", 2, "S", 4), group=0)
FLAT = State(input="v", output="v_after", dtype="float32", shape=("B", "S", 3), group=1)
WHOLE = State(input="c", output="c_after", kind="fixed", dtype="float32", shape=("B", 5, 2))
SHAPE = CacheShape(3, 7, 1)


class MovedByGraphs(StateBuffers):
    """Buffers in the host's memory that are moved as if they were in a device's."""

    def _mover(self, states: tuple[State, ...]) -> RowMover | None:
        return RowMover(states, self.shape.capacity_tokens, "cpu") if states else None


def filled(buffers: StateBuffers) -> StateBuffers:
    rng = np.random.default_rng(7)
    for held in (buffers._buffers, buffers._after):
        for buffer in held.values():
            content = buffer.read()
            content[...] = rng.normal(size=content.shape)
    return buffers


@pytest.fixture
def pair() -> tuple[StateBuffers, StateBuffers]:
    states = (KEYS, FLAT, WHOLE)
    by_graphs = filled(MovedByGraphs(states, SHAPE, "cpu"))
    by_graphs._zeros = {"c": StateBuffers((WHOLE,), CacheShape(1, 1, 1), "cpu")._buffers["c"]}
    return filled(StateBuffers(states, SHAPE, "cpu")), by_graphs


def rows(buffers: StateBuffers, slot: int, lengths: tuple[int, int]) -> list[np.ndarray]:
    """Return what counts of a slot: the rows that it holds, and its whole states of fixed size."""
    keys, flat, whole = (buffers._buffers[name].read()[slot] for name in "kvc")
    return [keys[:, : lengths[0]], flat[: lengths[1]], whole]


def assert_same(pair: tuple[StateBuffers, StateBuffers], held: dict[int, tuple[int, int]]) -> None:
    for slot, lengths in held.items():
        for first, second in zip(*(rows(each, slot, lengths) for each in pair), strict=True):
            np.testing.assert_array_equal(first, second)


def test_a_copy_brings_the_rows_and_leaves_every_other_slot_alone(pair) -> None:
    for each in pair:
        each.copy(2, 0, (4, 6))
    assert_same(pair, {0: (4, 6), 1: (7, 7), 2: (7, 7)})
    np.testing.assert_array_equal(pair[1]._buffers["k"].read()[0, :, :4], pair[1]._buffers["k"].read()[2, :, :4])


@pytest.mark.parametrize("kept", [[1, 3, 6], [5, 0, 2], [], list(range(7))])
def test_rows_that_are_kept_move_to_the_front_of_their_group_alone(pair, kept: list[int]) -> None:
    for each in pair:
        each.keep(1, 0, np.array(kept, np.int64))
    assert_same(pair, {0: (7, 7), 1: (len(kept), 7), 2: (7, 7)})


def test_states_of_fixed_size_are_taken_over_and_cleared(pair) -> None:
    for each in pair:
        each.take_over(0, 2)
        each.clear(1)
    assert_same(pair, dict.fromkeys(range(3), (7, 7)))
    assert not pair[1]._buffers["c"].read()[1].any()
    assert pair[1]._buffers["c"].read()[0].any()


def test_the_graph_of_gathers_is_one_that_onnx_reads_and_finds_no_fault_with() -> None:
    tensors = [Gathered("a", "b", "order", "float16", (1, 2, 300, 4), 2), Gathered("c", "d", "one", "int64", (1, 5), 0)]
    model = onnx.load_from_string(gather_graph(tensors))
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Gather", "Gather"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 300
