"""llama.cpp's blocks as the codes, scales and offsets that MatMulNBits multiplies, number for number.

A block of one of these types is `step * code + least`: steps and leasts are float16, or a product of a float16 and a
small integer, all of which float32 holds. With step 1 and least 0 written in their place, the `gguf` package, which
defines the types, gives the codes themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

from bundle.form import Form
from quant.rounding.block_codes import BlockCodes, zero_code

Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Layout:
    """How a type stores its blocks.

    Attributes:
        bits: That its codes take in MatMulNBits.
        steps: Blocks [n, bytes] to steps [n, scales per block].
        plain: Writes steps of 1 and leasts of 0 into blocks [n, bytes].
        leasts: Blocks to what is added to each weight, [n, scales per block]; None: codes are signed and nothing is.
        levels: Of codes that are not signed.
        block_size: Weights per scale.
    """

    bits: int
    steps: Callable[[Bytes], Float32]
    plain: Callable[[Bytes], None]
    leasts: Callable[[Bytes], Float32] | None = None
    levels: int = 16
    block_size: int = 32


def held_form(kind: Kind) -> Form | None:
    """Return bits and block size of a type's codes; None for a type that MatMulNBits does not hold."""
    layout = _LAYOUTS.get(kind)
    return None if layout is None else Form(layout.bits, layout.block_size)


def has_offsets(kind: Kind) -> bool:
    """Return whether a type adds something to every weight of a block."""
    return kind in _LAYOUTS and _LAYOUTS[kind].leasts is not None


def block_codes(data: npt.NDArray[Any], kind: Kind) -> BlockCodes | None:
    """Return rows of blocks as codes; None for a type that MatMulNBits does not hold.

    The weights that they stand for are those of `gguf.quants.dequantize`, bit for bit.

    Args:
        data: [N, bytes] uint8, as stored.
        kind: The type.
    """
    layout = _LAYOUTS.get(kind)
    if layout is None:
        return None
    _, type_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.ascontiguousarray(data).reshape(-1, type_bytes)
    plain = blocks.copy()
    layout.plain(plain)
    numbers = gguf.quants.dequantize(plain, kind).reshape(len(data), -1)
    scales = layout.steps(blocks).reshape(len(data), -1)
    if layout.leasts is None:
        return BlockCodes((numbers + zero_code(layout.bits)).astype(np.uint8), scales, layout.bits)
    return _with_offsets(numbers, scales, layout.leasts(blocks).reshape(len(data), -1), layout)


def _with_offsets(numbers: Float32, scales: Float32, leasts: Float32, layout: _Layout) -> BlockCodes:
    """Return codes counted from their middle where that changes no number; else from 0, as they are.

    From the middle a product is smaller, and so is what rounding the activations adds to it.
    """
    middle = np.float32(layout.levels // 2)
    offsets = leasts + middle * scales
    if np.array_equal(offsets.astype(np.float64), leasts + middle * scales.astype(np.float64)):
        codes = (numbers - middle + zero_code(layout.bits)).astype(np.uint8)
        return BlockCodes(codes, scales, layout.bits, offsets=offsets)
    zeros = np.zeros(scales.shape, np.uint8)
    return BlockCodes(numbers.astype(np.uint8), scales, layout.bits, zeros, leasts)


def _half(blocks: Bytes, start: int) -> Float32:
    """Return the float16 at a byte of each block: [n, 1] float32."""
    return blocks[:, start : start + 2].copy().view(np.float16).astype(np.float32)


def _write_halves(blocks: Bytes, start: int, *values: float) -> None:
    blocks[:, start : start + 2 * len(values)] = np.array(values, np.float16).view(np.uint8)


_K_SCALES = slice(4, 16)
"""Of Q4_K and Q5_K: eight steps and eight leasts of 6 bits, behind the two float16 that they multiply."""
_ONES_AND_ZEROS = np.repeat(np.array([1, 0, 1], np.uint8), 4)
"""Their bytes where every step is 1 and every least 0."""
_Q6_K_SCALES, _Q6_K_STEP = slice(192, 208), 208
"""Of Q6_K: sixteen int8 steps, and the float16 that they multiply."""


def _plain_k(blocks: Bytes) -> None:
    _write_halves(blocks, 0, 1.0, 0.0)
    blocks[:, _K_SCALES] = _ONES_AND_ZEROS


def _plain_q6_k(blocks: Bytes) -> None:
    blocks[:, _Q6_K_SCALES] = 1
    _write_halves(blocks, _Q6_K_STEP, 1.0)


def _k_steps(blocks: Bytes) -> Float32:
    return _half(blocks, 0) * gguf.quants.Q4_K.get_scale_min(blocks[:, _K_SCALES])[0].astype(np.float32)


def _k_leasts(blocks: Bytes) -> Float32:
    return -(_half(blocks, 2) * gguf.quants.Q4_K.get_scale_min(blocks[:, _K_SCALES])[1].astype(np.float32))


def _q6_k_steps(blocks: Bytes) -> Float32:
    return _half(blocks, _Q6_K_STEP) * blocks[:, _Q6_K_SCALES].copy().view(np.int8).astype(np.float32)


def _step(blocks: Bytes) -> Float32:
    return _half(blocks, 0)


def _least(blocks: Bytes) -> Float32:
    return _half(blocks, 2)


def _plain_step(blocks: Bytes) -> None:
    _write_halves(blocks, 0, 1.0)


def _plain_step_and_least(blocks: Bytes) -> None:
    _write_halves(blocks, 0, 1.0, 0.0)


_LAYOUTS: dict[Kind, _Layout] = {
    Kind.Q4_0: _Layout(4, _step, _plain_step),
    Kind.Q4_1: _Layout(4, _step, _plain_step_and_least, _least),
    Kind.Q5_0: _Layout(8, _step, _plain_step),
    Kind.Q5_1: _Layout(8, _step, _plain_step_and_least, _least, levels=32),
    Kind.Q8_0: _Layout(8, _step, _plain_step),
    Kind.Q4_K: _Layout(4, _k_steps, _plain_k, _k_leasts),
    Kind.Q5_K: _Layout(8, _k_steps, _plain_k, _k_leasts, levels=32),
    Kind.Q6_K: _Layout(8, _q6_k_steps, _plain_q6_k, block_size=16),
}
KEPT_KINDS = {kind.name: layout.bits for kind, layout in _LAYOUTS.items()}
"""What can be held, and the bits of a code that it is held in."""
