"""What every kind of quantized checkpoint is: a rule that turns what is stored into float32 weights."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from bundle.errors import CheckpointError, UnsupportedConfigError
from export.checkpoint import StoredTensor, WeightTensor
from export.config import Raw

_WEIGHT = ".weight"
_DEFAULT_SKIPS = ("lm_head",)
"""What transformers leaves unquantized in a causal decoder whose config does not list it."""


class QuantizationMethod(ABC):
    """One `quant_method` of config.json, opened on its settings.

    Args:
        settings: `quantization_config`.

    Raises:
        UnsupportedConfigError: A setting that is not built.
    """

    def __init__(self, settings: Raw) -> None:
        self.settings = settings

    @abstractmethod
    def restored(self, stored: Mapping[str, StoredTensor], linears: AbstractSet[str]) -> dict[str, WeightTensor]:
        """Return the weights by name; scales and the like, which their weights took in, are left out.

        Args:
            stored: What the files hold, under the names of the graphs.
            linears: Names of the weights of linear layers.

        Raises:
            CheckpointError: Tensors that contradict the settings or each other.
        """


class Unquantized(QuantizationMethod):
    """A checkpoint without `quantization_config`."""

    def restored(self, stored: Mapping[str, StoredTensor], linears: AbstractSet[str]) -> dict[str, WeightTensor]:
        """Return the tensors themselves."""
        refuse_codes(stored, "config.json has no quantization_config that says what they mean")
        return dict(stored)


def refuse_codes(stored: Mapping[str, StoredTensor], reason: str) -> None:
    """Refuse weights that are stored as bytes.

    Raises:
        CheckpointError: Names one of them.
    """
    codes = sorted(name for name, tensor in stored.items() if name.endswith(_WEIGHT) and tensor.is_codes)
    if codes:
        raise CheckpointError(
            f"{len(codes)} weights are stored as bytes, such as {codes[0]} ({stored[codes[0]].dtype}), and {reason}. "
            "The checkpoint is incomplete, or its config.json belongs to another one."
        )


def is_converted(weight: str, skips: Sequence[str] | None) -> bool:
    """Return whether a config's list of modules to skip leaves this one to be quantized.

    A pattern excludes a module whose path it begins, up to a dot, or whose path ends with it; as in transformers
    (`should_convert_module`).

    Args:
        weight: Name of the layer's weight.
        skips: `modules_to_not_convert` or `llm_int8_skip_modules`; None stands for the output matrix.
    """
    module = weight.removesuffix(_WEIGHT)
    patterns = _DEFAULT_SKIPS if skips is None else skips
    try:
        return not any(re.match(rf"(?:{p})(?:(?<=\.)|(?=\.|$))", module) or module.endswith(p) for p in patterns)
    except re.error as error:
        raise UnsupportedConfigError(f"quantization_config skips modules by {skips!r}: {error}") from error


def skips_of(settings: Raw, key: str) -> Sequence[str] | None:
    """Return a list of modules from `quantization_config`.

    Raises:
        UnsupportedConfigError: It is no list of texts.
    """
    skips = settings.get(key)
    if skips is not None and not (isinstance(skips, list) and all(isinstance(each, str) for each in skips)):
        raise UnsupportedConfigError(f"quantization_config.{key} is {skips!r}, expected a list of module names")
    return skips
