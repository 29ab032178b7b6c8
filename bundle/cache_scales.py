"""The scales of a cache of codes, by state: what a number is that one step of a code stands for.

`cache_scales.npz` lies beside the graphs, which hold the same numbers for their operators: nothing that serves reads
those. Whoever wants rows as floats does: policies that score or merge them, and the canary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bundle.array_file import read_arrays
from bundle.errors import BundleFileError
from bundle.json_file import printable
from bundle.states import State

CACHE_SCALES = "cache_scales.npz"
_MOST_ARRAYS = 1 << 14
_MOST_BYTES = 1 << 26
"""32 layers of 4,096 numbers a row, keys and values, take 1 MiB."""

Float32 = npt.NDArray[np.float32]


def save_cache_scales(directory: Path, scales: Mapping[str, Float32]) -> None:
    """Write `cache_scales.npz` from scales by the name of the state's input."""
    with (directory / CACHE_SCALES).open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **scales)


def load_cache_scales(path: Path, states: Sequence[State]) -> dict[str, Float32]:
    """Return the scales of every state of codes, each of the state's `scale_shape`, by the name of its input.

    Raises:
        BundleFileError: The file is missing, damaged, lacks a state or holds one of another shape, or numbers that are
            no scales.
    """
    try:
        arrays = read_arrays(path, _MOST_ARRAYS, _MOST_BYTES)
        coded = [state for state in states if state.scheme != "float"]
        return {state.input: _checked(arrays.get(state.input), state) for state in coded}
    except Exception as error:  # `read_arrays` lets out whatever numpy does
        raise BundleFileError(
            f"{path} is missing or damaged: {printable(str(error))}. Quantize the fp32 bundle again."
        ) from error


def _checked(scales: npt.NDArray[np.generic] | None, state: State) -> Float32:
    if scales is None:
        raise ValueError(f"it holds no scales of {state.input}")
    wanted = state.scale_shape
    if scales.dtype != np.float32 or scales.shape != wanted:
        raise ValueError(
            f"the scales of {state.input} are {scales.dtype} {list(scales.shape)}, not float32 {list(wanted)}"
        )
    found = scales.astype(np.float32)
    if not (np.isfinite(found).all() and (found > 0).all()):
        raise ValueError(f"some scales of {state.input} are no positive numbers")
    return found
