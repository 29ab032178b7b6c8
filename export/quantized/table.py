"""Which class restores which `quant_method`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from export.config import Raw
from export.quantized.method import QuantizationMethod, Unquantized

METHODS: Mapping[str, str] = {
    "bitnet": "export.quantized.bitnet:BitNet",
    "bitsandbytes": "export.quantized.bitsandbytes:BitsAndBytes",
    "fp8": "export.quantized.fp8:Float8",
}
"""`quantization_config.quant_method` to "module:Class"."""


def refuse_nested(config: Raw) -> None:
    """Refuse a part of a checkpoint that says itself how it is quantized, however a family stores its weights.

    Raises:
        UnsupportedConfigError: Names the parts.
    """
    nested = [key for key, part in config.items() if isinstance(part, Mapping) and part.get("quantization_config")]
    if nested:
        raise UnsupportedConfigError(f"quantization_config stands in {', '.join(nested)}; only the top level is read")


def load_method(config: Raw) -> QuantizationMethod:
    """Return how the weights of a checkpoint are stored.

    Raises:
        UnsupportedConfigError: A method that is not built.
    """
    settings = config.get("quantization_config")
    if settings is None:
        return Unquantized({})
    name = settings.get("quant_method") if isinstance(settings, Mapping) else None
    if name not in METHODS:
        raise UnsupportedConfigError(
            f"quantization_config.quant_method {name!r} is not read; known: {', '.join(METHODS)}. "
            "Export the checkpoint that it was made from, or save it dequantized."
        )
    module, attribute = METHODS[str(name)].split(":")
    method = getattr(importlib.import_module(module), attribute)(settings)
    if not isinstance(method, QuantizationMethod):
        raise TypeError(f"{METHODS[str(name)]} is not a QuantizationMethod")
    return method
