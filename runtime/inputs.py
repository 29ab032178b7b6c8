"""The inputs of a decoder's steps, in buffers that are made once and written again before every run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runtime.graph import Array
from runtime.settings import Provider

Place = tuple[tuple[int, ...], int]
"""Shape and address of an array."""


@dataclass(frozen=True)
class Binding:
    """A graph's binding and where its arrays lie, so that what lies where it lay is not bound anew.

    Attributes:
        io: ONNX Runtime's.
        places: By the name of the input or output.
    """

    io: Any
    places: dict[str, Place] = field(default_factory=dict)


class InputBuffers:
    """One buffer per input, as large as the largest array that it ever held.

    Args:
        device: Where graphs run. What they do not read where it lies is copied when it is bound, so it is bound anew
            for every run.
    """

    def __init__(self, device: Provider) -> None:
        self._is_read_in_place = device == "cpu"
        self._buffers: dict[str, tuple[Array, int]] = {}

    def bind(self, binding: Binding, name: str, array: Array) -> None:
        """Bind an input to its buffer, which then holds the array; valid until it is bound again."""
        if name not in self._buffers or self._buffers[name][0].size < array.size:
            made = np.empty(array.size, array.dtype)
            self._buffers[name] = made, made.ctypes.data
        buffer, address = self._buffers[name]
        np.copyto(buffer[: array.size].reshape(array.shape), array, casting="no")
        place = array.shape, address
        if binding.places.get(name) != place or not self._is_read_in_place:
            binding.io.bind_input(name, "cpu", 0, buffer.dtype, *place)
            binding.places[name] = place
