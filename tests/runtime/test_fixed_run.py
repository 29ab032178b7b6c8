"""Runs over memory of fixed address, against plain runs of the same graph."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bundle.errors import MachineError
from runtime.fixed_run import CapturedGraph, FixedRun, can_be_captured
from runtime.graph import Graph
from runtime.settings import RuntimeSettings

RNG = np.random.default_rng(3)


def graph_of(path: Path, free: str | int = 4) -> Graph:
    """Return x [I, free] uint8 -> doubled [I, free] int32, and its row sums [I, 1]."""
    node = helper.make_node
    nodes = [
        node("Cast", ["x"], ["wide"], to=TensorProto.INT32),
        node("Add", ["wide", "wide"], ["doubled"]),
        node("ReduceSum", ["wide"], ["summed"], axes=[1]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, ["I", free])
    outputs = [("doubled", ["I", free]), ("summed", ["I", 1])]
    given = [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name, shape in outputs]
    opsets = [helper.make_opsetid("", 11)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], given), opset_imports=opsets, ir_version=10), path)
    return Graph(path, RuntimeSettings(intra_threads=1))


def pixels(count: int) -> np.ndarray:
    return RNG.integers(0, 255, (count, 4)).astype(np.uint8)


def test_every_number_of_images_gives_what_a_plain_run_gives_and_each_answer_is_its_own(tmp_path: Path) -> None:
    graph = graph_of(tmp_path / "g.onnx")
    captured = CapturedGraph(graph)
    told: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for count in (1, 3, 1, 20, 3, 2, 1):
        feeds = {"x": pixels(count)}
        told.append((captured.run(feeds), graph.run(feeds)))
    for found, expected in told:
        assert found.keys() == expected.keys()
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name])
    assert captured.run({"x": pixels(2)}, ["summed"]).keys() == {"summed"}


def test_shapes_beyond_those_that_are_kept_run_uncaptured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.fixed_run._MOST_SHAPES", 2)
    graph = graph_of(tmp_path / "g.onnx")
    captured = CapturedGraph(graph)
    for count in range(1, 6):
        feeds = {"x": pixels(count)}
        np.testing.assert_array_equal(captured.run(feeds)["doubled"], graph.run(feeds)["doubled"])
    assert len(captured._runs) == 2


def test_inputs_are_copied_so_that_a_caller_may_reuse_its_arrays(tmp_path: Path) -> None:
    run = FixedRun(graph_of(tmp_path / "g.onnx"), {"x": pixels(1)}, {"summed": ((1, 1), "int32")})
    mine = np.full((1, 4), 7, np.uint8)
    run.run({"x": mine})
    mine[:] = 0
    assert run.output("summed").tolist() == [[28]]
    run.run({"x": mine})
    assert run.output("summed").tolist() == [[0]]


def test_the_first_run_is_captured_alone_on_the_device_and_those_after_it_are_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, told = graph_of(tmp_path / "g.onnx"), list[bool]()
    graph.can_capture = True
    faults = [MachineError("the device was lost")]

    def run_bound(binding: Any, options: Any, *, captures: bool) -> None:
        told.append(captures)
        if faults:
            raise faults.pop()

    monkeypatch.setattr(graph, "run_bound", run_bound)
    run = FixedRun(graph, {"x": pixels(1)}, {"summed": ((1, 1), "int32")})
    with pytest.raises(MachineError):
        run.run({"x": pixels(1)})
    for _ in range(3):
        run.run({"x": pixels(1)})
    assert told == [True, True, False, False]
    plain = FixedRun(graph, {"x": pixels(1)}, {"summed": ((1, 1), "int32")}, is_captured=False)
    plain.run({"x": pixels(1)})
    assert told[-1] is False


def test_each_thread_captures_alone_on_the_device_what_another_one_has_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime keeps what it captured by thread: a second one that replays by its number captures again."""
    graph, told = graph_of(tmp_path / "g.onnx"), list[bool]()
    graph.can_capture = True
    monkeypatch.setattr(graph, "run_bound", lambda *_, captures: told.append(captures))
    run = FixedRun(graph, {"x": pixels(1)}, {"summed": ((1, 1), "int32")})
    run.run({"x": pixels(1)})
    for _ in range(2):  # the second may get the number of the first one, which has ended
        worker = threading.Thread(target=lambda: [run.run({"x": pixels(1)}) for _ in range(2)])
        worker.start()
        worker.join()
    run.run({"x": pixels(1)})
    assert told == [True, True, False, True, False, False]


def test_an_input_whose_copy_failed_is_copied_again(tmp_path: Path) -> None:
    run = FixedRun(graph_of(tmp_path / "g.onnx"), {"x": pixels(1)}, {"summed": ((1, 1), "int32")})
    first, second = np.full((1, 4), 1, np.uint8), np.full((1, 4), 2, np.uint8)
    run.run({"x": first})
    value = run._inputs["x"]

    class Failing:
        def update_inplace(self, array: np.ndarray) -> None:
            raise RuntimeError("no memory")

    run._inputs["x"] = Failing()
    with pytest.raises(RuntimeError):
        run.run({"x": second})
    run._inputs["x"] = value
    run.run({"x": second})
    assert run.output("summed").tolist() == [[8]]


def test_only_a_graph_of_one_free_axis_on_a_device_that_captures_is_captured(tmp_path: Path) -> None:
    graph = graph_of(tmp_path / "g.onnx")
    assert not can_be_captured(graph)  # the CPU captures nothing
    graph.can_capture = True
    assert can_be_captured(graph)
    wide = graph_of(tmp_path / "wide.onnx", free="W")
    wide.can_capture = True
    assert not can_be_captured(wide)


def test_each_captured_run_has_a_number_of_its_own_and_others_have_none(tmp_path: Path) -> None:
    graph = graph_of(tmp_path / "g.onnx")
    graph.can_capture = True
    numbers = []
    for is_captured in (True, True, False):
        run = FixedRun(graph, {"x": pixels(1)}, {"summed": ((1, 1), "int32")}, is_captured=is_captured)
        numbers.append(int(run._options.get_run_config_entry("gpu_graph_id")))
    assert len(set(numbers)) == 3
    assert numbers[2] == -1
    assert min(numbers[:2]) > 0  # 0 is ONNX Runtime's own
