"""What a decoder hands from one step to the next, as data: no reader of a bundle spells these tensors' names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

SEQUENCES = "B"
"""The axis of sequences: the first of every state."""
ROWS = "S"
"""The axis along which a state holds one row per token."""
_LARGEST_STATE_BYTES = 1 << 32
"""Of one row of one sequence, or of one sequence's whole state."""
DTYPES = ("float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool")
"""numpy names of the elements that a graph takes and gives."""


CacheScheme = Literal["float", "int8", "int4"]
"""How rows are stored: as they are, or as signed codes with a scale per channel, those of 4 bits two in a byte."""
_CODE_DTYPES: dict[CacheScheme, str] = {"int8": "int8", "int4": "uint8"}


class MemoryPlace(BaseModel):
    """Where rows of image features go in a state of kind "memory".

    Attributes:
        first_column: Of a row, the first of the numbers that the state holds of it: as many as its other sizes make
            together, in their order.
        row_axis: Along which axis of the state's shape the rows lie.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_column: int = Field(ge=0)
    row_axis: int = Field(ge=1)


class State(BaseModel):
    """One tensor that a graph takes and gives back, changed; or takes alone.

    Attributes:
        input: Name of the graph's input.
        output: Name of the graph's output; of the input's shape. Empty for kind "memory".
        kind: "rows": one row per token that was read, written in place in a buffer of fixed length (keys, values);
            "fixed": as large after one token as after a thousand (a convolution's or a recurrence's state). A fixed
            state is all zeros before a sequence begins;
            "memory": of one size as well, made of image features before a sequence begins, and only read from then on
            (keys and values of cross-attention). What no token sees of it may be anything.
        dtype: numpy name of its elements.
        scheme: How its rows hold numbers. Scales of codes lie in `bundle.cache_scales`.
        shape: B first, S where the rows of a state of kind "rows" lie; all other sizes are numbers.
            Codes of 4 bits halve the last one.
        group: States of one length group hold the same number of rows of a sequence; None for kind "fixed".
        layer: Whose keys or values its rows are, [B, heads, S, C]; None for anything else, and in bundles that were
            exported before it was told.
        part: Which of both.
        memory: Where image features go, of kind "memory"; None for any other.
        keeps_float32: Variants in float16 leave it in float32: a sum over the whole sequence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str
    output: str = ""
    kind: Literal["rows", "fixed", "memory"] = "rows"
    dtype: str
    scheme: CacheScheme = "float"
    shape: tuple[int | str, ...]
    group: int | None = None
    layer: int | None = Field(default=None, ge=0)
    part: Literal["key", "value"] | None = None
    memory: MemoryPlace | None = None
    keeps_float32: bool = False

    @model_validator(mode="after")
    def _check(self) -> State:
        wanted = {SEQUENCES, ROWS} if self.kind == "rows" else {SEQUENCES}
        if not self.shape or self.shape[0] != SEQUENCES or {a for a in self.shape if isinstance(a, str)} != wanted:
            raise ValueError(
                f"{self.input}: shape {list(self.shape)} of a state of kind {self.kind!r}; wanted {wanted}"
            )
        if (self.group is None) == (self.kind == "rows") or (self.group or 0) < 0:
            raise ValueError(f"{self.input}: length group {self.group} of a state of kind {self.kind!r}")
        if any(isinstance(size, int) and size < 1 for size in self.shape):
            raise ValueError(f"{self.input}: shape {list(self.shape)}; every size is at least 1")
        if (self.layer is None) != (self.part is None) or (
            self.part and (self.kind, self.shape[2:3]) != ("rows", (ROWS,))
        ):
            raise ValueError(
                f"{self.input}: {self.part} of layer {self.layer}, of kind {self.kind!r}, {list(self.shape)}"
            )
        self._check_memory()
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.input}: dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        self._check_codes()
        if self.num_bytes > _LARGEST_STATE_BYTES:
            raise ValueError(f"{self.input}: shape {list(self.shape)} takes {self.num_bytes} bytes a sequence")
        return self

    def _check_memory(self) -> None:
        is_memory = self.kind == "memory"
        if is_memory == bool(self.output) or is_memory != (self.memory is not None):
            raise ValueError(
                f"{self.input}: of kind {self.kind!r}, given back as {self.output!r}, image features at "
                f"{self.memory!r}; memory alone is not given back, and says where features go"
            )
        if self.memory is not None and self.memory.row_axis >= len(self.shape):
            raise ValueError(f"{self.input}: rows along axis {self.memory.row_axis} of {list(self.shape)}")

    def _check_codes(self) -> None:
        if self.scheme == "float":
            return
        wanted = _CODE_DTYPES[self.scheme]
        if self.kind != "rows" or self.dtype != wanted or self.shape[-1] == ROWS:
            raise ValueError(
                f"{self.input}: codes of scheme {self.scheme!r} are rows of {wanted} whose channels come last; this is "
                f"a state of kind {self.kind!r}, {self.dtype} {list(self.shape)}"
            )

    @property
    def is_halved(self) -> bool:
        """Whether variants in float16 keep it so."""
        return self.dtype == "float32" and not self.keeps_float32

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Return the shape of the scales of codes: one per number of a row."""
        *before, last = (size for size in self.shape[1:] if isinstance(size, int))
        return (*before, 2 * last if self.scheme == "int4" else last)

    def sizes(self, num_sequences: int, capacity_rows: int) -> tuple[int, ...]:
        """Return the shape of a buffer for so many sequences of so many rows."""
        named = {SEQUENCES: num_sequences, ROWS: capacity_rows}
        return tuple(named[size] if isinstance(size, str) else size for size in self.shape)

    @property
    def row_axis(self) -> int:
        """Where the rows lie in the shape of a state of kind "rows"."""
        return self.shape.index(ROWS)

    def coded(self, scheme: CacheScheme) -> State:
        """Return this state of floats with its rows as codes; of another kind, and for the scheme "float", itself.

        Raises:
            ValueError: Codes of 4 bits, and an odd number of channels.
        """
        if self.kind != "rows" or scheme == "float":
            return self
        *before, channels = self.shape
        if scheme == "int4":
            if not isinstance(channels, int) or channels % 2:
                raise ValueError(f"{self.input}: two codes of 4 bits share a byte, and it has {channels} channels")
            channels //= 2
        changes = {"dtype": _CODE_DTYPES[scheme], "scheme": scheme, "shape": (*before, channels)}
        return State.model_validate({**self.model_dump(), **changes})

    @property
    def num_bytes(self) -> int:
        """Bytes of one row of one sequence, or of one sequence's whole state of another kind."""
        return prod(self.sizes(1, 1)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class LayerStates:
    """The keys and the values of one layer, of one length group."""

    key: State
    value: State

    @property
    def group(self) -> int:
        """The length group."""
        return self.key.group or 0


def layers_of(states: Sequence[State]) -> tuple[LayerStates, ...]:
    """Return the keys and values of every layer, in order; none where some state is anything else."""
    keys = sorted((state for state in states if state.part == "key"), key=lambda state: state.layer or 0)
    values = sorted((state for state in states if state.part == "value"), key=lambda state: state.layer or 0)
    places = [[(state.layer, state.group) for state in each] for each in (keys, values)]
    if places[0] != places[1] or len(keys) + len(values) != len(states):
        return ()
    return tuple(map(LayerStates, keys, values))
