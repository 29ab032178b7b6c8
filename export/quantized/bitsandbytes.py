"""Weights that bitsandbytes quantized: NF4 and FP4 (QLoRA, arXiv 2305.14314) and LLM.int8() (arXiv 2208.07339).

bitsandbytes describes every weight beside it, so what is quantized is read from the tensors and held against the
config.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import CheckpointError, UnsupportedConfigError
from export.checkpoint import StoredTensor, WeightTensor
from export.config import Raw
from export.quantized.method import QuantizationMethod, is_converted, refuse_codes, skips_of

_FOUR_BIT = ("nf4", "fp4")
_STATE = ".quant_state.bitsandbytes__"
_PER_STEP = np.float32(7.874015718698502e-3)
"""1/127, spelled as bitsandbytes does, in whose float32 product the last bit follows from it."""
_ROW_MAJOR = 0
"""The one `weight_format` that is not of a particular GPU."""


@dataclass(frozen=True)
class FourBit:
    """A matrix in codes of 16 levels, two to a byte, the first in the high bits.

    Attributes:
        codes: Of any dtype: the bytes count.
        levels: [16] float32, from -1 to 1.
        absmax: [blocks] float32; or uint8 codes of `nested`.
        state: What bitsandbytes keeps of the matrix: shape, blocksize and, where nested, the like of absmax.
        nested: Levels [256] and absmax of the codes of absmax; None where absmax holds numbers.
    """

    codes: StoredTensor
    levels: StoredTensor
    absmax: StoredTensor
    state: Mapping[str, Any]
    nested: tuple[StoredTensor, StoredTensor] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, K]."""
        return tuple(self.state["shape"])

    def read(self) -> npt.NDArray[np.float32]:
        """Return [N, K]: each code's level times the largest magnitude of its block."""
        packed = self.codes.mapped().reshape(-1).view(np.uint8)
        codes = np.stack([packed >> np.uint8(4), packed & np.uint8(15)], axis=1).reshape(-1)[: math.prod(self.shape)]
        values = self.levels.read()[codes]
        peaks = np.repeat(self._peaks(), self.state["blocksize"])[: values.size]
        return np.asarray(values * peaks, np.float32).reshape(self.shape)

    def _peaks(self) -> npt.NDArray[np.float32]:
        if self.nested is None:
            return self.absmax.read()
        levels, peaks = (tensor.read() for tensor in self.nested)
        steps = levels[self.absmax.mapped()] * np.repeat(peaks, self.state["nested_blocksize"])[: self.absmax.shape[0]]
        return np.asarray(steps + np.float32(self.state["nested_offset"]), np.float32)


@dataclass(frozen=True)
class Int8Rows:
    """A matrix in int8, one scale a row.

    Attributes:
        codes: [N, K] int8.
        peaks: [N], the largest magnitude of each row, which code 127 stands for.
    """

    codes: StoredTensor
    peaks: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, K]."""
        return self.codes.shape

    def read(self) -> npt.NDArray[np.float32]:
        """Return [N, K]."""
        return np.asarray(self.codes.mapped() * self.peaks.read()[:, None] * _PER_STEP, np.float32)


class BitsAndBytes(QuantizationMethod):
    """`quant_method` bitsandbytes."""

    def __init__(self, settings: Raw) -> None:
        super().__init__(settings)
        self._skips = skips_of(settings, "llm_int8_skip_modules")
        four, eight = bool(settings.get("load_in_4bit")), bool(settings.get("load_in_8bit"))
        if four == eight:
            raise UnsupportedConfigError(
                f"quantization_config: load_in_4bit {four}, load_in_8bit {eight}; one of them must be true"
            )
        self._kind = settings.get("bnb_4bit_quant_type", "fp4") if four else "int8"
        if self._kind not in (*_FOUR_BIT, "int8"):
            raise UnsupportedConfigError(
                f"quantization_config.bnb_4bit_quant_type {self._kind!r}; known: {', '.join(_FOUR_BIT)}"
            )

    def restored(self, stored: Mapping[str, StoredTensor], linears: AbstractSet[str]) -> dict[str, WeightTensor]:
        """Return every quantized matrix with the tensors that describe it taken in, and the rest as it is."""
        rest = dict(stored)
        found: dict[str, WeightTensor] = {}
        for name in stored:
            kind = _kind_of(name, stored)
            if kind is not None:
                self._check(name, kind)
                found[name] = _int8(name, rest) if kind == "int8" else _four_bit(name, kind, rest)
        if not found:
            raise CheckpointError(f"quantization_config promises {self._kind} weights; the checkpoint holds none")
        refuse_codes(rest, "lack what bitsandbytes stores beside them (absmax and quant_state, or SCB)")
        return {**rest, **found}

    def _check(self, name: str, kind: str) -> None:
        if kind != self._kind:
            raise CheckpointError(f"{name} is stored as {kind}; quantization_config says {self._kind}")
        if not is_converted(name, self._skips):
            raise CheckpointError(f"{name} is stored as {kind}, but llm_int8_skip_modules lists its layer")


def _kind_of(name: str, stored: Mapping[str, StoredTensor]) -> str | None:
    """Return "nf4", "fp4" or "int8" for the name of a quantized weight, else None."""
    four_bit = next((kind for kind in _FOUR_BIT if f"{name}{_STATE}{kind}" in stored), None)
    return "int8" if name.endswith(".weight") and _scales_name(name) in stored else four_bit


def _scales_name(name: str) -> str:
    return name.removesuffix("weight") + "SCB"


def _int8(name: str, rest: dict[str, StoredTensor]) -> Int8Rows:
    """Return the matrix, its tensors removed from `rest`."""
    codes, peaks = rest.pop(name), rest.pop(_scales_name(name))
    layout = rest.pop(f"{name}_format", None)
    if layout is not None and int(layout.mapped().reshape(-1)[0]) != _ROW_MAJOR:
        raise CheckpointError(f"{name} is in a layout of one kind of GPU; save the model again with bitsandbytes 0.45+")
    if codes.dtype != "I8" or peaks.shape != codes.shape[:1]:
        raise CheckpointError(
            f"{name} is {codes.dtype} {list(codes.shape)} with scales {list(peaks.shape)}; expected int8 [N, K] and [N]"
        )
    return Int8Rows(codes, peaks)


def _four_bit(name: str, kind: str, rest: dict[str, StoredTensor]) -> FourBit:
    """Return the matrix, its tensors removed from `rest`."""
    state = _state(name, rest.pop(f"{name}{_STATE}{kind}"))
    is_nested = f"{name}.nested_absmax" in rest
    wanted = ["absmax", "quant_map", *(["nested_absmax", "nested_quant_map"] if is_nested else [])]
    missing = [part for part in wanted if f"{name}.{part}" not in rest]
    if missing:
        raise CheckpointError(f"{name} is stored as {kind} without its {', '.join(missing)}")
    codes = rest.pop(name)
    absmax, levels, *nested = (rest.pop(f"{name}.{part}") for part in wanted)
    count = math.prod(state["shape"])
    blocks = -(-count // state["blocksize"])
    num_bytes = codes.mapped().nbytes
    if num_bytes != -(-count // 2) or absmax.shape != (blocks,) or levels.shape != (16,):
        raise CheckpointError(
            f"{name}: {num_bytes} bytes of codes, {list(absmax.shape)} scales and {list(levels.shape)} levels do not "
            f"make a {state['shape']} matrix in blocks of {state['blocksize']}"
        )
    return FourBit(codes, levels, absmax, state, (nested[1], nested[0]) if nested else None)


def _state(name: str, stored: StoredTensor) -> Mapping[str, Any]:
    """Return what bitsandbytes keeps as JSON in a tensor of bytes."""
    try:
        state = json.loads(stored.mapped().tobytes())
        whole = {"shape": [int(size) for size in state["shape"]], "blocksize": int(state["blocksize"])}
        if "nested_blocksize" in state:
            whole |= {
                "nested_blocksize": int(state["nested_blocksize"]),
                "nested_offset": float(state["nested_offset"]),
            }
        return whole
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the quant_state of {name} cannot be read: {error!r}") from error
