"""BitNet b1.58 (Ma et al., arXiv 2402.17764) as transformers' `bitnet` stores it: -1, 0 and 1 times a scale per matrix.

Only the weights are restored. The layers of such a model also round their inputs to int8, one scale a token; graphs
keep them in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.errors import CheckpointError, UnsupportedConfigError
from export.checkpoint import StoredTensor, WeightTensor
from export.config import Raw
from export.quantized.method import QuantizationMethod, is_converted, refuse_codes, skips_of

_CODES_PER_BYTE = 4
_SMALLEST_MEAN = np.float32(1e-5)
"""Of absolute weights, below which the scale stays (transformers, `WeightQuant`)."""
_NOT_AN_EXPERT = r"(?!.*\.experts\.).*"
_CLASSES, _MODES = ("bitlinear", "autobitlinear"), ("offline", "online")


@dataclass(frozen=True)
class PackedTernary:
    """Codes four to a byte, and a scale.

    Bits 2q and 2q+1 of stored row r hold the weight of row q * N/4 + r, plus 1.

    Attributes:
        name: Of the weight, for messages.
        codes: [N/4, K] uint8.
        scale: One number.
        is_divisor: Weights are codes / scale, not codes * scale.
    """

    name: str
    codes: StoredTensor
    scale: StoredTensor
    is_divisor: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, K]."""
        return (self.codes.shape[0] * _CODES_PER_BYTE, *self.codes.shape[1:])

    def read(self) -> npt.NDArray[np.float32]:
        """Return [N, K].

        Raises:
            CheckpointError: A code is 3, which stands for no ternary weight.
        """
        packed = self.codes.mapped()
        if (packed & (packed >> 1) & 0b01010101).any():
            raise CheckpointError(f"{self.name} holds the 2-bit code 3: codes are 0, 1 and 2 for -1, 0 and 1")
        parts = [(packed >> np.uint8(2 * quarter)) & np.uint8(3) for quarter in range(_CODES_PER_BYTE)]
        return _scaled(np.concatenate(parts).astype(np.float32) - 1, self.scale, is_divisor=self.is_divisor)


@dataclass(frozen=True)
class ScaledWeight:
    """A matrix stored unpacked, as numbers, beside its scale.

    Attributes:
        weight: [N, K].
        scale: One number, multiplied.
    """

    weight: StoredTensor
    scale: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, K]."""
        return self.weight.shape

    def read(self) -> npt.NDArray[np.float32]:
        """Return [N, K]."""
        return _scaled(self.weight.read(), self.scale, is_divisor=False)


@dataclass(frozen=True)
class TrainedWeight:
    """The full-precision matrix that training keeps; the model computes with it rounded to three values.

    Attributes:
        weight: [N, K].
    """

    weight: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, K]."""
        return self.weight.shape

    def read(self) -> npt.NDArray[np.float32]:
        """Return round(w / mean|w|) limited to -1 ... 1, times mean|w|."""
        weight = self.weight.read()
        mean = np.float32(np.abs(weight).mean(dtype=np.float64))
        inverse = np.float32(1) / max(mean, _SMALLEST_MEAN)
        return np.asarray(np.clip(np.rint(weight * inverse), -1, 1) / inverse, np.float32)


def _scaled(codes: npt.NDArray[np.float32], scale: StoredTensor, *, is_divisor: bool) -> npt.NDArray[np.float32]:
    value = scale.read().reshape(-1)[0]
    return np.asarray(codes / value if is_divisor else codes * value, np.float32)


class BitNet(QuantizationMethod):
    """`quant_method` bitnet.

    Linear class "bitlinear" packs and divides by the scale; "autobitlinear" multiplies by it, packed or not, and in
    mode "online" stores the weights of training, which are rounded when they are used.
    """

    def __init__(self, settings: Raw) -> None:
        super().__init__(settings)
        self._class = settings.get("linear_class", _CLASSES[0])
        self._mode = settings.get("quantization_mode", _MODES[0])
        self._skips = skips_of(settings, "modules_to_not_convert")
        if self._class not in _CLASSES or self._mode not in _MODES:
            raise UnsupportedConfigError(
                f"quantization_config: linear_class {self._class!r}, quantization_mode {self._mode!r}; known are "
                f"{', '.join(_CLASSES)} and {', '.join(_MODES)}"
            )
        if settings.get("use_rms_norm"):
            raise UnsupportedConfigError("quantization_config.use_rms_norm: a norm inside each layer is not built")

    def restored(self, stored: Mapping[str, StoredTensor], linears: AbstractSet[str]) -> dict[str, WeightTensor]:
        """Return ternary matrices where the config says so, and the rest as it is."""
        packed = {f"{name}_scale" for name in stored}
        kept = {name: tensor for name, tensor in stored.items() if name not in packed}
        refuse_codes(
            {name: kept[name] for name in kept if f"{name}_scale" not in stored}, "have no weight_scale beside them"
        )
        return {name: self._weight(name, stored, name in linears) for name in kept}

    def _weight(self, name: str, stored: Mapping[str, StoredTensor], is_linear: bool) -> WeightTensor:
        weight, scale = stored[name], stored.get(f"{name}_scale")
        converts = is_converted(name, self._skips)
        if scale is not None:
            self._check(name, weight, scale, converts)
            if weight.is_codes:
                return PackedTernary(name, weight, scale, is_divisor=self._class == "bitlinear")
            return ScaledWeight(weight, scale)
        if not (is_linear and converts):
            return weight
        if self._mode == "online" and self._class == "autobitlinear":
            return TrainedWeight(weight)
        raise CheckpointError(
            f"{name} is stored as {weight.dtype} without a weight_scale, and quantization_config ({self._label}) says "
            "that its layer is ternary. Layers in full precision are listed in modules_to_not_convert."
        )

    def _check(self, name: str, weight: StoredTensor, scale: StoredTensor, converts: bool) -> None:
        """Refuse a weight with a scale that the config does not allow.

        Raises:
            CheckpointError: Says what was found.
        """
        found = f"{name} is stored as {weight.dtype} {list(weight.shape)} with a weight_scale {list(scale.shape)}"
        if not converts:
            raise CheckpointError(f"{found}, but modules_to_not_convert lists its layer")
        if self._mode == "online":
            raise CheckpointError(f"{found}, but quantization_mode online stores weights that are not yet rounded")
        if self._class == "bitlinear" and not weight.is_codes:
            raise CheckpointError(f"{found}, but linear_class bitlinear packs four weights to a byte")
        if len(weight.shape) != 2 or scale.shape not in ((), (1,)):
            raise CheckpointError(f"{found}; a matrix with one scale is known")

    @property
    def _label(self) -> str:
        return f"linear_class {self._class}, quantization_mode {self._mode}"


class PackedExperts(BitNet):
    """Routed experts packed as "autobitlinear" packs, in a checkpoint whose other layers are in full precision."""

    def __init__(self, settings: Raw) -> None:
        super().__init__({**settings, "linear_class": "autobitlinear", "modules_to_not_convert": [_NOT_AN_EXPERT]})
