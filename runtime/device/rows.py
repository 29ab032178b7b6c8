"""Rows of a cache that move inside a device's memory: a graph reads a slot in another order and writes a slot.

ONNX Runtime's Python interface copies between host and device and not within a device; a graph that runs there does.
A slot moves as a whole, whatever it holds of rows: on a device that is quicker than a copy per head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.states import State
from runtime.device.gather_graph import Gathered, gather_graph
from runtime.fixed_run import device_value
from runtime.graph import Graph
from runtime.settings import Provider, RuntimeSettings

Address = Callable[[State], int]
"""Where a slot of a state begins."""
Order = npt.NDArray[np.int64]
_ROWS, _WHOLE = "rows", "whole"
"""Inputs: the order of rows, and that of a state that has none, which is a single 0."""


class RowMover:
    """Moves slots of states in a device's memory.

    Args:
        states: That are moved together.
        capacity_tokens: Rows of a slot.
        device: Whose memory they are in.
    """

    def __init__(self, states: Sequence[State], capacity_tokens: int, device: Provider) -> None:
        self._states = tuple(states)
        self._sizes = {state.input: state.sizes(1, capacity_tokens) for state in states}
        self._places = [(state, (device, 0, np.dtype(state.dtype), self._sizes[state.input])) for state in self._states]
        self._device = device
        self._graph = Graph(gather_graph([self._gathered(state) for state in states]), RuntimeSettings(provider=device))
        self._io = self._graph.binding()
        self._scratch: dict[str, Any] = {}
        self._as_it_is = np.arange(capacity_tokens, dtype=np.int64)
        self._bound_order: Order | None = None

    def copy(self, source: Address, target: Address) -> None:
        """Copy a slot over another one."""
        self._run(source, target, self._as_it_is)

    def keep(self, slot: Address, kept: Order) -> None:
        """Move the rows of these numbers to the front of a slot, in this order; what lies behind them is lost."""
        order = np.zeros_like(self._as_it_is)
        order[: len(kept)] = kept
        self._run(slot, self._aside, order)
        self._run(self._aside, slot, self._as_it_is)

    def _aside(self, state: State) -> int:
        """Return where rows lie between two orders; memory for that is taken when rows are first dropped."""
        if state.input not in self._scratch:
            zeros = np.zeros(self._sizes[state.input], state.dtype)
            self._scratch[state.input] = device_value(zeros, self._device)
        return int(self._scratch[state.input].data_ptr())

    def _gathered(self, state: State) -> Gathered:
        has_rows = state.kind == "rows"
        order, axis = (_ROWS, state.row_axis) if has_rows else (_WHOLE, 0)
        return Gathered(state.input, state.output, order, state.dtype, self._sizes[state.input], axis)

    def _run(self, source: Address, target: Address, order: Order) -> None:
        self._bind_order(order)
        for state, place in self._places:
            self._io.bind_input(state.input, *place, source(state))
            self._io.bind_output(state.output, *place, target(state))
        self._graph.run_bound(self._io)

    def _bind_order(self, order: Order) -> None:
        """Bring an order to the device, unless it is the one that is there: most moves are whole copies."""
        if self._bound_order is order:
            return
        orders = {_ROWS: order, _WHOLE: np.zeros(1, np.int64)}
        for port in self._graph.inputs:
            if port.name in orders:
                self._io.bind_ortvalue_input(port.name, device_value(orders[port.name], self._device))
        self._bound_order = order
