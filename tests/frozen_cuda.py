"""A stand-in for ONNX Runtime's CUDA provider, on the CPU, that replays what is captured as CUDA does.

A session that captures keeps, by thread and by the run's number, the addresses of everything that lies on the device
and the content of what the host gave; a later run of that thread and number reads and writes those, whatever is bound
to it by then. What a device would answer with spoiled memory is an error here: a capture that does not have the device
to itself, memory that is touched while nobody holds the gate, a replay into memory that was given back, an address that
belongs to nobody.
"""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from runtime.capture_gate import CAPTURE_GATE

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
Array = np.ndarray[Any, Any]


class MisuseError(Exception):
    """A device would have been spoiled."""


class Memory:
    """An OrtValue of the device. Those of the host are ONNX Runtime's own."""

    def __init__(self, device: Device, array: Array) -> None:
        self._device, self.array = device, array

    @property
    def num_bytes(self) -> int:
        return self.array.nbytes

    def data_ptr(self) -> int:
        return int(self.array.ctypes.data)

    def update_inplace(self, array: Array) -> None:
        self._device.check_entered("memory is written")
        if (array.shape, array.dtype) != (self.array.shape, self.array.dtype):
            raise MisuseError(f"{array.dtype} {array.shape} copied over {self.array.dtype} {self.array.shape}")
        self.array[...] = array

    def numpy(self) -> Array:
        self._device.check_entered("memory is read")
        return self.array.copy()


@dataclass(frozen=True)
class Place:
    """What an input or output is bound to: a value, which a binding holds, or an address, which it does not."""

    on_host: bool
    array: Array
    of: weakref.ref[Memory] | None
    held: Memory | None = None

    def frozen(self) -> Place:
        """Return what a captured run sees of it ever after: a replay asks nobody whether memory is still there."""
        return Place(True, self.array.copy(), None) if self.on_host else replace(self, held=None)

    def checked(self) -> Array:
        if self.of is not None and self.of() is None:
            raise MisuseError("a run into memory that was given back")
        return self.array


@dataclass
class Binding:
    """An IOBinding; outputs that are bound to nothing come to the host."""

    device: Device
    inputs: dict[str, Place] = field(default_factory=dict)
    outputs: dict[str, Place | None] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    def bind_input(self, name: str, place: str, _: int, dtype: Any, shape: Sequence[int], address: int) -> None:
        self.inputs[name] = self._at(place, dtype, shape, address)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.inputs[name] = self._of(value)

    def bind_output(
        self,
        name: str,
        place: str,
        _: int = 0,
        dtype: Any = None,
        shape: Sequence[int] = (),
        address: int | None = None,
    ) -> None:
        self.outputs[name] = None if address is None else self._at(place, dtype, shape, address)

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.outputs[name] = self._of(value)

    def get_outputs(self) -> list[Any]:
        return [
            self.found[name] if place is None else Memory(self.device, place.array)
            for name, place in self.outputs.items()
        ]

    def _of(self, value: Any) -> Place:
        if isinstance(value, Memory):
            return Place(False, value.array, weakref.ref(value), value)
        return self._at("cpu", value.numpy().dtype, value.shape(), value.data_ptr())

    def _at(self, place: str, dtype: Any, shape: Sequence[int], address: int) -> Place:
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        owner = None if place == "cpu" else weakref.ref(self.device.owner(address, num_bytes))
        memory = (ctypes.c_char * num_bytes).from_address(address)
        return Place(place == "cpu", np.frombuffer(memory, dtype).reshape(shape), owner)


class Session:
    """An InferenceSession of the device."""

    def __init__(self, device: Device, session: Any, captures: bool) -> None:
        self._device, self._session, self._captures = device, session, captures
        self._of_thread = threading.local()
        for name in ("get_inputs", "get_outputs", "get_overridable_initializers"):
            setattr(self, name, getattr(session, name))

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return []

    def io_binding(self) -> Binding:
        return Binding(self._device)

    def run(self, names: Sequence[str], feeds: dict[str, Array], options: Any) -> list[Array]:
        if self._number(options) is not None:
            raise MisuseError("a run with arrays of the host's is captured")
        self._device.check_entered("a run")
        found: list[Array] = self._session.run(names, feeds, options)
        return found

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        number = self._number(options)
        captured: dict[int, Binding] = self._of_thread.__dict__.setdefault("captured", {})
        if number is None or number in captured:
            self._device.check_entered("a run")
            self._execute(binding if number is None else captured[number], options)
            self._device.num_replayed += number is not None
            return
        if not CAPTURE_GATE._is_capturing or CAPTURE_GATE._num_runs:
            raise MisuseError("a capture that does not have the device to itself")
        if not all(binding.outputs.values()):
            raise MisuseError("a captured run gives its outputs to the device alone")
        self._execute(binding, options)
        frozen = {name: place.frozen() for name, place in binding.inputs.items()}
        captured[number] = Binding(
            self._device, frozen, {name: place and place.frozen() for name, place in binding.outputs.items()}
        )
        self._device.num_captured += 1

    def _number(self, options: Any) -> int | None:
        """Return the number by which a run is captured; None where it is not."""
        if not self._captures:
            return None
        number = int(options.get_run_config_entry("gpu_graph_id"))  # raises where none is set: it would be captured
        return None if number == -1 else number

    def _execute(self, binding: Binding, options: Any) -> None:
        io = self._session.io_binding()
        for name, place in binding.inputs.items():
            array = place.checked()
            io.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, bound in binding.outputs.items():
            if bound is None:
                io.bind_output(name, "cpu")
                continue
            array = bound.checked()
            io.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(io, options)
        for name, bound, value in zip(binding.outputs, binding.outputs.values(), io.get_outputs(), strict=True):
            if bound is None:
                binding.found[name] = value


class Device:
    """What stands in the place of the module `onnxruntime`.

    Attributes:
        num_captured: Runs that were captured, by any thread.
        num_replayed: Of them, those that came again.
        num_bytes: Of memory that is taken now.
    """

    def __init__(self) -> None:
        self.num_captured = self.num_replayed = 0
        self._taken: weakref.WeakSet[Memory] = weakref.WeakSet()
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=self._value)

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    @property
    def num_bytes(self) -> int:
        return sum(value.num_bytes for value in self._taken)

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]

    def InferenceSession(self, source: Any, options: Any, providers: Sequence[Any]) -> Any:
        session = onnxruntime.InferenceSession(source, options, providers=[CPU])
        cuda = next((dict(each[1]) for each in providers if isinstance(each, tuple)), None)
        return session if cuda is None else Session(self, session, cuda.get("enable_cuda_graph") == "1")

    def check_entered(self, what: str) -> None:
        if not CAPTURE_GATE._num_runs and not CAPTURE_GATE._is_capturing:
            raise MisuseError(f"{what}, and nobody has entered the gate")

    def owner(self, address: int, num_bytes: int) -> Memory:
        for value in self._taken:
            if value.data_ptr() <= address and address + num_bytes <= value.data_ptr() + value.num_bytes:
                return value
        raise MisuseError(f"{num_bytes} bytes at {address:#x} belong to nobody")

    def _value(self, array: Array, place: str, number: int) -> Any:
        if place == "cpu":
            return onnxruntime.OrtValue.ortvalue_from_numpy(array, place, number)
        self.check_entered("memory is taken")
        value = Memory(self, array.copy())
        self._taken.add(value)
        return value
