"""What becomes of a variant's graphs once their weights are what they will be."""

from __future__ import annotations

import onnx_ir as ir

from bundle.manifest import Manifest, Phase, Role
from graphs.lowering.decoder import lower_decoder
from graphs.lowering.rotary_in_attention import table_bytes

_SPLIT_BYTES = 64
"""At most, of the sizes that joined layers are split by."""


def lower(model: ir.Model, parent: Manifest, role: Role, phase: Phase) -> None:
    """Write a graph as it runs fastest where it will run, in place.

    The portable dialect stays plain: TensorRT's builder joins operators itself, and knows standard ones alone.

    Args:
        model: Quantized or not.
        parent: The fp32 bundle that it was made of.
        role: What it computes.
        phase: When it runs.
    """
    if role == "decoder" and parent.dialect == "contrib" and parent.decoder is not None:
        lower_decoder(model, parent.decoder.max_positions, phase)


def added_bytes(parent: Manifest) -> int:
    """Return what lowering adds at most to the weights of a variant, once whatever the number of its decoders."""
    if parent.dialect != "contrib" or parent.decoder is None:
        return 0
    heads = {state.shape[-1] for state in parent.states if state.kind == "rows"}
    sizes = [size for size in heads if isinstance(size, int)]
    return _SPLIT_BYTES + sum(table_bytes(parent.decoder.max_positions, size) for size in sizes)
