"""Weights in eight-bit floating point (Micikevicius et al., arXiv 2209.05433, E4M3) as transformers' `fp8` stores them.

Only the weights are restored. Layers of such a model round their inputs to the same numbers, by a scale of the file
("static") or their own largest ("dynamic"); graphs keep them in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.errors import CheckpointError, UnsupportedConfigError
from export.checkpoint import StoredTensor, WeightTensor
from export.config import Raw, require
from export.quantized.method import QuantizationMethod, is_converted, refuse_codes, skips_of

_DTYPE = "F8_E4M3"
_DEFAULT_BLOCK = (128, 128)
"""Where a config says nothing (transformers, `FineGrainedFP8Config`); null: one scale a matrix."""
_SCALE, _OF_INPUTS = "_scale_inv", "activation_scale"


@dataclass(frozen=True)
class ScaledFloat8:
    """A matrix in eight-bit floating point, with a scale for all of it or for each block.

    Attributes:
        codes: [N, K].
        scale: One number, or [ceil(N / rows), ceil(K / columns)]; multiplied, for all its name.
        block: Rows and columns of a block; None: one scale.
    """

    codes: StoredTensor
    scale: StoredTensor
    block: tuple[int, int] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, K]."""
        return self.codes.shape

    def read(self) -> npt.NDArray[np.float32]:
        """Return [N, K]."""
        values, scale = self.codes.mapped().astype(np.float32), self.scale.read()
        if self.block is None:
            return np.asarray(values * scale.reshape(-1)[0], np.float32)
        for axis, size in enumerate(self.block):
            scale = np.repeat(scale, size, axis)
        return np.asarray(values * scale[: values.shape[0], : values.shape[1]], np.float32)


class Float8(QuantizationMethod):
    """`quant_method` fp8."""

    def __init__(self, settings: Raw) -> None:
        super().__init__(settings)
        require(settings, [("scale_fmt", "float"), ("expert_dtype", "fp8")])
        self._skips = skips_of(settings, "modules_to_not_convert")
        block = settings.get("weight_block_size", _DEFAULT_BLOCK)
        if block is not None and not (len(block) == 2 and all(isinstance(each, int) and each > 0 for each in block)):
            raise UnsupportedConfigError(
                f"quantization_config.weight_block_size {block!r}: two numbers above 0 are read, or null for one scale "
                "a matrix"
            )
        self._block = None if block is None else (int(block[0]), int(block[1]))

    def restored(self, stored: Mapping[str, StoredTensor], linears: AbstractSet[str]) -> dict[str, WeightTensor]:
        """Return matrices times their scales where they have some, and the rest as it is."""
        scales = {name for name in stored if name.endswith(f".weight{_SCALE}")}
        kept = {
            name: tensor
            for name, tensor in stored.items()
            if name not in scales and not name.endswith(f".{_OF_INPUTS}")
        }
        alone = {name: tensor for name, tensor in kept.items() if f"{name}{_SCALE}" not in scales}
        refuse_codes(alone, "have no weight_scale_inv beside them")
        if not scales:
            raise CheckpointError("quantization_config promises fp8 weights; the checkpoint holds none")
        return {name: tensor if name in alone else self._weight(name, stored) for name, tensor in kept.items()}

    def _weight(self, name: str, stored: Mapping[str, StoredTensor]) -> ScaledFloat8:
        """Return a weight that has a scale.

        Raises:
            CheckpointError: It is no such matrix, or its scale is of another block than the config's.
        """
        codes, scale = stored[name], stored[f"{name}{_SCALE}"]
        found = f"{name} is stored as {codes.dtype} {list(codes.shape)} with a weight_scale_inv {list(scale.shape)}"
        if not is_converted(name, self._skips):
            raise CheckpointError(f"{found}, but modules_to_not_convert lists its layer")
        if codes.dtype != _DTYPE or len(codes.shape) != 2:
            raise CheckpointError(f"{found}; a matrix of {_DTYPE} is known")
        wanted = (
            [(), (1,)]
            if self._block is None
            else [tuple(-(-size // of) for size, of in zip(codes.shape, self._block, strict=True))]
        )
        if scale.shape not in wanted:
            raise CheckpointError(f"{found}; weight_block_size {self._block} makes it {list(wanted[0])}")
        return ScaledFloat8(codes, scale, self._block)
