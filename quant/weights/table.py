"""Weight schemes by name. To add one: a file here with a `WeightPass` and its numpy reference, and a line below."""

from __future__ import annotations

from importlib import import_module

from bundle.errors import QuantizationError
from quant.weights.weight_pass import WeightPass

PASSES = {
    "w8a8": "quant.weights.w8a8:PerTokenInt8",
    "w8a8_static": "quant.weights.w8a8_static:StaticInt8",
    "matmul_nbits": "quant.weights.matmul_nbits:MatMulNBits",
    "bnb4": "quant.weights.bnb4:Bnb4",
    "float16": "quant.weights.float16:Float16",
    "qdq_int4": "quant.weights.qdq_int4:DequantizedInt4",
    "qmoe": "quant.weights.qmoe:QuantizedExperts",
    "gather_blocks": "quant.weights.gather_blocks:GatherBlocks",
    "gather_rows": "quant.weights.gather_blocks:GatherRows",
}


def load_pass(name: str) -> type[WeightPass]:
    """Return the pass of a scheme.

    Raises:
        QuantizationError: No scheme has that name.
    """
    if name not in PASSES:
        raise QuantizationError(f"unknown weight scheme {name!r}; known: {', '.join(PASSES)}")
    module, attribute = PASSES[name].split(":")
    found: type[WeightPass] = getattr(import_module(module), attribute)
    return found
