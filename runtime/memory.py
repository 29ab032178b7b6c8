"""States of kind "memory", made of image features: what each of them takes of a row, and where it keeps it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bundle.errors import SignatureError
from bundle.states import State
from runtime.graph import Array


def remembered(state: State, memory: Array) -> Array:
    """Return what a state holds of rows of features [R, W], for one sequence: its shape without B, R along its rows.

    Raises:
        SignatureError: It is no memory, has no room for so many, or rows have fewer numbers than it wants.
    """
    if state.memory is None:
        raise SignatureError(f"{state.input} is no memory of image features")
    axis, sizes = state.memory.row_axis, state.sizes(1, 0)
    others = (*sizes[1:axis], *sizes[axis + 1 :])
    first, end = state.memory.first_column, state.memory.first_column + math.prod(others)
    if len(memory) > sizes[axis] or memory.shape[1] < end:
        raise SignatureError(
            f"{state.input} holds {sizes[axis]} rows of the numbers {first} to {end - 1} of image features; given are "
            f"{list(memory.shape)}. Export the checkpoint again."
        )
    return np.moveaxis(memory[:, first:end].reshape(len(memory), *others), 0, axis - 1)


def filled_memory(states: Sequence[State], memory: Array | None) -> dict[str, Array]:
    """Return states of kind "memory" of one sequence by input name, for a graph that is run only once.

    Args:
        states: Of the manifest.
        memory: [R, W] rows of image features; None: the sequence has none.
    """
    if memory is None:
        return {}
    made = {}
    for state in (each for each in states if each.memory is not None):
        held = remembered(state, memory)
        whole = np.zeros(state.sizes(1, 0), state.dtype)
        whole[0][tuple(map(slice, held.shape))] = held
        made[state.input] = whole
    return made
