"""The inputs of a decoder's steps, in buffers that are made once and written again before every run."""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.graph import Array


class InputBuffers:
    """One buffer per input, as large as the largest array that it ever held."""

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def bind(self, binding: Any, name: str, array: Array) -> None:
        """Bind an input to its buffer, which then holds the array; valid until it is bound again."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < array.size:
            buffer = self._buffers[name] = np.empty(array.size, array.dtype)
        view = buffer[: array.size].reshape(array.shape)
        np.copyto(view, array, casting="no")
        binding.bind_input(name, "cpu", 0, view.dtype, view.shape, view.ctypes.data)
