"""An engine with the verbs of `runtime.graph.Graph`: arrays in, arrays out, or memory bound beforehand."""

from __future__ import annotations

import ctypes
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bundle.errors import MachineError
from runtime.fixed_run import device_value
from runtime.graph import Array, device_gate
from runtime.settings import Provider
from runtime.tensorrt.engine import Engine

_MOST_STAGED = 64
"""Of one engine: shapes of inputs and outputs that cross to the device and back; prompts have many lengths."""
Allocate = Callable[[tuple[int, ...], str], Any]
"""Returns memory of a device of a shape and numpy dtype, as ONNX Runtime's OrtValue gives it: `data_ptr`,
`update_inplace`, `numpy`."""


@dataclass(frozen=True)
class _Place:
    """Where an input or output lies.

    Attributes:
        device: "cpu": the host's memory.
        dtype: Of its elements; None: as the engine says.
        shape: None: as it comes out.
        address: None: wherever there is room.
    """

    device: str
    dtype: Any = None
    shape: tuple[int, ...] | None = None
    address: int | None = None


class EngineBinding:
    """Inputs and outputs of runs, by name, bound as an ONNX Runtime binding binds them."""

    def __init__(self) -> None:
        self.inputs: dict[str, _Place] = {}
        self.outputs: dict[str, _Place] = {}
        self.results: list[Any] = []

    def bind_input(
        self, name: str, device: str, device_id: int, dtype: Any, shape: Sequence[int], address: int
    ) -> None:
        """Bind an input to memory that holds it when a run begins."""
        self.inputs[name] = _Place(device, dtype, tuple(shape), address)

    def bind_output(
        self,
        name: str,
        device: str,
        device_id: int = 0,
        dtype: Any = None,
        shape: Sequence[int] | None = None,
        address: int | None = None,
    ) -> None:
        """Bind an output to memory, or to a device, where room is made for it."""
        self.outputs[name] = _Place(device, dtype, None if shape is None else tuple(shape), address)

    def get_outputs(self) -> list[Any]:
        """Return the outputs of the last run in the order in which they were bound; each has `numpy`."""
        return self.results


@dataclass(frozen=True)
class _Result:
    content: Array

    def numpy(self) -> Array:
        """Return the output."""
        return self.content


@dataclass(frozen=True)
class _Sent:
    """Where a run reads an input.

    Attributes:
        address: On the device.
        staged: Memory of ours there, held until the run is over; None where the caller's own is read.
    """

    address: int
    staged: Any = None


@dataclass(frozen=True)
class _Room:
    """Where a run writes an output.

    Attributes:
        address: On the device.
        staged: Memory of ours there; None where the caller's own is written.
        wanted: Memory of the host that the output is copied to.
    """

    address: int
    staged: Any = None
    wanted: Array | None = None

    def fetched(self) -> _Result | None:
        """Return the output on the host, where somebody wants it there."""
        if self.staged is None:
            return None
        content = np.array(self.staged.numpy(), copy=True)
        if self.wanted is not None:
            np.copyto(self.wanted, content)
        return _Result(content)


class EngineGraph:
    """One engine of a bundle.

    Args:
        engine: Loaded.
        device: Where its memory is.
        allocate: Makes memory there.

    Attributes:
        name: For messages.
        device: Where it runs.
        in_part: None: an engine computes all that it gives.
        can_capture: False.
        inputs: As the engine declares them.
        optional_inputs: None.
        outputs: As the engine declares them.
    """

    def __init__(self, engine: Engine, device: Provider, allocate: Allocate | None = None) -> None:
        self.name = str(engine.path)
        self.device: Provider = device
        self.in_part = None
        self.can_capture = False
        self.inputs, self.optional_inputs, self.outputs = engine.inputs, (), engine.outputs
        self._engine = engine
        self._allocate = allocate or (lambda shape, dtype: device_value(np.zeros(shape, dtype), device))
        self._staged: OrderedDict[tuple[str, tuple[int, ...]], Any] = OrderedDict()
        self._lock = threading.Lock()  # a context runs one run at a time

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return outputs by name, all where none are named; the arrays are new.

        Raises:
            MachineError: The run failed.
        """
        binding = self.binding()
        held = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        for name, array in held.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for port in self.outputs:
            binding.bind_output(port.name, "cpu")
        self.run_bound(binding)
        found = dict(zip(binding.outputs, (each.numpy() for each in binding.get_outputs()), strict=True))
        return found if outputs is None else {name: found[name] for name in outputs}

    def binding(self) -> EngineBinding:
        """Return a fresh binding."""
        return EngineBinding()

    def run_options(self, *, in_part: bool, graph_number: int | None = None) -> None:
        """Return None: an engine's runs have no options."""

    def run_bound(self, binding: EngineBinding, options: Any | None = None, *, captures: bool = False) -> None:
        """Run with inputs and outputs bound beforehand; never while a run of another graph is captured.

        Args:
            binding: As `binding` returned it.
            options: None.
            captures: False: an engine's runs are not captured.

        Raises:
            MachineError: The run failed, or something is not bound.
        """
        with self._lock:
            taken = {name: place.shape or () for name, place in binding.inputs.items()}
            if unbound := {port.name for port in (*self.inputs, *self.outputs)} - {*taken, *binding.outputs}:
                raise MachineError(f"{self.name}: {', '.join(sorted(unbound))} is bound to nothing; bind all of a run")
            profile = self._engine.profile_of(taken)
            given = self._engine.shapes_of(profile, taken)
            sent = {name: self._sent(name, place) for name, place in binding.inputs.items()}
            rooms = {name: self._room(name, given[name], place, sent) for name, place in binding.outputs.items()}
            addresses = {name: each.address for name, each in sent.items()}
            addresses |= {name: each.address for name, each in rooms.items()}
            with device_gate(self.device):
                self._engine.run(profile, addresses)
                binding.results = [room.fetched() for room in rooms.values()]

    def _sent(self, name: str, place: _Place) -> _Sent:
        """Return where an input lies on the device, copied there from the host."""
        if place.device != "cpu":
            return _Sent(place.address or 0)
        content = _host_array(place)
        staged = self._staging(name, content.shape, content.dtype.name)
        with device_gate(self.device):
            staged.update_inplace(content)
        return _Sent(int(staged.data_ptr()), staged)

    def _room(self, name: str, shape: tuple[int, ...], place: _Place, sent: Mapping[str, _Sent]) -> _Room:
        """Return where an output is written on the device: where the input lies that it must share memory with.

        Raises:
            MachineError: The two are bound apart.
        """
        source = sent.get(self._engine.aliases.get(name, ""))
        is_ours = place.device == "cpu"
        if source is not None and (source.staged is None if is_ours else source.address != place.address):
            raise MachineError(
                f"{self.name}: {name} is written where {self._engine.aliases[name]} lies; bind both to the same memory"
            )
        if not is_ours:
            return _Room(place.address or 0)
        if source is None:
            staged = self._staging(name, shape, next(port.dtype for port in self.outputs if port.name == name))
        else:
            staged = source.staged
        return _Room(int(staged.data_ptr()), staged, None if place.address is None else _host_array(place))

    def _staging(self, name: str, shape: tuple[int, ...], dtype: str) -> Any:
        """Return memory of the device for what the host gives or wants, kept for the next run of that shape."""
        key = name, shape
        if key not in self._staged:
            self._staged[key] = self._allocate(shape, dtype)
            if len(self._staged) > _MOST_STAGED:
                self._staged.popitem(last=False)
        self._staged.move_to_end(key)
        return self._staged[key]


def _host_array(place: _Place) -> Array:
    """Return memory of the host as an array; it is not copied."""
    shape, dtype = place.shape or (), np.dtype(place.dtype)
    memory = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(place.address or 0)
    return np.frombuffer(memory, dtype).reshape(shape)
