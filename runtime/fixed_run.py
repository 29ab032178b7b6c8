"""A graph's run of one shape, over inputs and outputs that stay where they are on a device, so that it can be captured.

A captured run is one launch of everything that the graph does (a CUDA graph), with the addresses that it had when it
was captured. ONNX Runtime captures it in the first run that bears its number, on the thread of that run.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

import numpy as np

from runtime.graph import Array, Graph
from runtime.onnx_runtime import onnx_runtime

_GRAPH_NUMBERS = count(1)
"""ONNX Runtime's `gpu_graph_id`: 0 is its own. Never used twice, whatever graph and thread it is for."""
_MOST_SHAPES = 16
"""Captured of one graph: numbers of tiles in a batch. Each takes about as long as three runs when it first occurs."""


class FixedRun:
    """One shape of a graph's run.

    Args:
        graph: Opened; with `captures` set where it is to be captured.
        feeds: An example of every input that is not bound by the caller; what the first run finds.
        outputs: Shape and numpy dtype by name, of the outputs that are wanted.
        host_inputs: Names of those that the graph reads on the host, while kernels are launched; a captured run keeps
            what it read when it was captured.
        is_captured: Capture the first run and replay it ever after.

    Attributes:
        io: ONNX Runtime's binding; states are bound to it by the caller before the first run.
    """

    def __init__(
        self,
        graph: Graph,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, tuple[tuple[int, ...], str]],
        host_inputs: frozenset[str] = frozenset(),
        *,
        is_captured: bool = True,
    ) -> None:
        self._graph = graph
        self.io = graph.binding()
        self._inputs = {
            name: device_value(array, "cpu" if name in host_inputs else graph.device) for name, array in feeds.items()
        }
        self._outputs = {
            name: device_value(np.zeros(shape, dtype), graph.device) for name, (shape, dtype) in outputs.items()
        }
        for name, value in self._inputs.items():
            self.io.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self.io.bind_ortvalue_output(name, value)
        self._options = graph.run_options(in_part=True, graph_number=next(_GRAPH_NUMBERS) if is_captured else None)

    def run(self, feeds: Mapping[str, Array]) -> None:
        """Run with new inputs of the same shapes; the outputs are overwritten.

        Raises:
            MachineError: The run failed.
        """
        for name, array in feeds.items():
            self._inputs[name].update_inplace(array)
        self._graph.run_bound(self.io, self._options)

    def output(self, name: str) -> Array:
        """Return a copy of an output on the host."""
        found: Array = self._outputs[name].numpy()
        return found


def device_value(array: Array, device: str) -> Any:
    """Return ONNX Runtime's value with an array's content, in memory of its own."""
    content = np.array(array, copy=True, order="C")  # on the host, ONNX Runtime takes the array's own memory
    return onnx_runtime().OrtValue.ortvalue_from_numpy(content, device, 0)


class FixedRuns:
    """Captured runs of a graph by the shapes of its inputs, for graphs whose outputs are free in one axis only.

    Args:
        graph: Opened with `captures` set.
        outputs: As the graph declares them; a free axis is as long as the inputs' first.
    """

    def __init__(self, graph: Graph, outputs: Mapping[str, tuple[tuple[int | str, ...], str]]) -> None:
        self._graph = graph
        self._outputs = outputs
        self._runs: dict[tuple[tuple[int, ...], ...], FixedRun] = {}

    def try_run(self, feeds: Mapping[str, Array]) -> dict[str, Array] | None:
        """Return every output by name; None where as many shapes were captured as are kept."""
        shapes = tuple(array.shape for array in feeds.values())
        if shapes not in self._runs:
            if len(self._runs) == _MOST_SHAPES:
                return None
            self._runs[shapes] = FixedRun(self._graph, feeds, self._sizes(shapes[0][0]))
        run = self._runs[shapes]
        run.run(feeds)
        return {name: run.output(name) for name in self._outputs}

    def _sizes(self, first: int) -> dict[str, tuple[tuple[int, ...], str]]:
        return {
            name: (tuple(size if isinstance(size, int) else first for size in shape), dtype)
            for name, (shape, dtype) in self._outputs.items()
        }
