"""A graph's run of one shape, over inputs and outputs that stay where they are on a device, so that it can be captured.

A captured run is one launch of everything that the graph does (a CUDA graph), with the addresses that it had when it
was captured. ONNX Runtime captures it in the first run of a thread that bears its number, for that thread alone, and
wants the device to itself meanwhile: `device_gate` sees to that, and whatever serves captures all that it will replay
while it starts.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Protocol

import numpy as np

from runtime.graph import Array, Graph, device_gate
from runtime.onnx_runtime import onnx_runtime
from runtime.settings import Provider

_GRAPH_NUMBERS = count(1)
"""ONNX Runtime's `gpu_graph_id`: 0 is its own. Never used twice, whatever graph and thread it is for."""
_MOST_COMPARED_BYTES = 1024
"""Of an input that is not copied to the device again where it has not changed: a copy costs more than the look."""
_MOST_SHAPES = 16
"""Captured of one graph: numbers of tiles in a batch. Each takes about as long as three runs when it first occurs."""


class BoundRuns(Protocol):
    """A graph whose inputs and outputs can be bound to memory, whoever runs it."""

    device: Provider
    can_capture: bool

    def binding(self) -> Any:
        """Return a fresh binding."""

    def run_options(self, *, in_part: bool, graph_number: int | None = None) -> Any:
        """Return options of a run."""

    def run_bound(self, binding: Any, options: Any | None = None, *, captures: bool = False) -> None:
        """Run with inputs and outputs bound beforehand; `captures`: this is the run that is captured."""


class FixedRun:
    """One shape of a graph's run.

    Args:
        graph: Opened; with `captures` set where it is to be captured.
        feeds: An example of every input that is not bound by the caller; what the first run finds.
        outputs: Shape and numpy dtype by name, of the outputs that are wanted.
        host_inputs: Names of those that the graph reads on the host, while kernels are launched; a captured run keeps
            what it read when it was captured.
        is_captured: Capture the first run of each thread, and replay it ever after.
        rooms: Memory of the device at whose front outputs are written, by name, where they have none of their own.
            Whoever else writes there ends what `output` returns of them.

    Attributes:
        io: ONNX Runtime's binding; states are bound to it by the caller before the first run.
    """

    def __init__(
        self,
        graph: BoundRuns,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, tuple[tuple[int, ...], str]],
        host_inputs: frozenset[str] = frozenset(),
        *,
        is_captured: bool = True,
        rooms: Mapping[str, Any] | None = None,
    ) -> None:
        self._graph = graph
        self.io = graph.binding()
        self._inputs = {
            name: device_value(array, "cpu" if name in host_inputs else graph.device) for name, array in feeds.items()
        }
        self._rooms = {name: room for name, room in (rooms or {}).items() if name in outputs}
        self._outputs = {
            name: device_value(np.zeros(shape, dtype), graph.device)
            for name, (shape, dtype) in outputs.items()
            if name not in self._rooms
        }
        self._held: dict[str, bytes] = {}
        for name, value in self._inputs.items():
            self.io.bind_ortvalue_input(name, value)
        for name, room in self._rooms.items():  # first: `output` finds them by their number
            shape, dtype = outputs[name]
            self.io.bind_output(name, graph.device, 0, np.dtype(dtype), shape, room.data_ptr())
        for name, value in self._outputs.items():
            self.io.bind_ortvalue_output(name, value)
        self._captures = is_captured and graph.can_capture
        self._of_thread = threading.local()  # `is_captured` in threads that have; it goes with its thread, as CUDA's do
        self._options = graph.run_options(in_part=True, graph_number=next(_GRAPH_NUMBERS) if is_captured else None)

    def run(self, feeds: Mapping[str, Array]) -> None:
        """Run with new inputs of the same shapes; the outputs are overwritten.

        Raises:
            MachineError: The run failed.
        """
        with device_gate(self._graph.device):
            self._copy(feeds)
        is_due = self._captures and not hasattr(self._of_thread, "is_captured")
        self._graph.run_bound(self.io, self._options, captures=is_due)
        if is_due:
            self._of_thread.is_captured = True

    def _copy(self, feeds: Mapping[str, Array]) -> None:
        for name, array in feeds.items():
            content = array.tobytes() if array.nbytes <= _MOST_COMPARED_BYTES else None
            if content is None or self._held.get(name) != content:
                self._held.pop(name, None)  # until it is there: a copy may fail
                self._inputs[name].update_inplace(array)
            if content is not None:
                self._held[name] = content

    def output(self, name: str) -> Array:
        """Return a copy of an output on the host."""
        with device_gate(self._graph.device):
            if name in self._rooms:
                found: Array = self.io.get_outputs()[list(self._rooms).index(name)].numpy()
            else:
                found = self._outputs[name].numpy()
        return found.copy() if self._graph.device == "cpu" else found  # there it is the memory itself


def device_value(array: Array, device: Provider) -> Any:
    """Return ONNX Runtime's value with an array's content, in memory of its own."""
    content = np.array(array, copy=True, order="C")  # on the host, ONNX Runtime takes the array's own memory
    with device_gate(device):
        return onnx_runtime().OrtValue.ortvalue_from_numpy(content, device, 0)


class CapturedGraph:
    """A graph whose runs are captured by the shapes of their inputs; its outputs are free in their first axis alone.

    Args:
        graph: Opened with `captures` set.

    Attributes:
        inputs: As declared, those without a value of their own.
        optional_inputs: Those that have one.
        outputs: As declared.
    """

    def __init__(self, graph: Graph) -> None:
        self.inputs, self.optional_inputs, self.outputs = graph.inputs, graph.optional_inputs, graph.outputs
        self._graph = graph
        self._runs: dict[tuple[tuple[tuple[int, ...], ...], tuple[str, ...]], FixedRun] = {}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return outputs by name, all where none are named; the arrays are new. What is captured computes no others.

        Raises:
            MachineError: The run failed.
        """
        names = tuple(port.name for port in self.outputs) if outputs is None else tuple(outputs)
        shapes = tuple(array.shape for array in feeds.values())
        key = shapes, names
        if key not in self._runs and len(self._runs) == _MOST_SHAPES:
            return self._graph.run(feeds, names)
        if key not in self._runs:
            self._runs[key] = FixedRun(self._graph, feeds, self._sizes(shapes[0][0], names))
        run = self._runs[key]
        run.run(feeds)
        return {name: run.output(name) for name in names}

    def _sizes(self, first: int, names: Sequence[str]) -> dict[str, tuple[tuple[int, ...], str]]:
        wanted = [port for port in self.outputs if port.name in names]
        return {port.name: ((first, *map(int, port.shape[1:])), port.dtype) for port in wanted}  # type: ignore[arg-type]


def can_be_captured(graph: Graph) -> bool:
    """Return whether a graph's runs have one shape for every length of its inputs' first axis."""
    ports = (*graph.inputs, *graph.outputs)
    return graph.can_capture and all(isinstance(size, int) for port in ports for size in port.shape[1:])
