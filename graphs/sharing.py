"""Weights that several graphs of a bundle hold, stored once.

A tied embedding table is looked up by one graph and multiplied by another. Under the same form GatherBlockQuantized
and MatMulNBits hold the same bytes, and so may the prompt's graph and the step's. ONNX lets a graph point into any
file beside it, so the later graph points into the earlier one's data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphs.store import PAGE_BYTES, open_graph

WORTH_SHARING_BYTES = 1 << 16
"""Smaller weights are left where they are."""

_HELD_BYTES = 1 << 20  # a tensor up to that is held in memory while its file is written anew


def share_weights(folder: Path, files: Sequence[str]) -> dict[str, int]:
    """Point graphs at weights that an earlier one holds, drop their own, and return the bytes saved in each file.

    Args:
        folder: That the graphs lie in, as `save_graph` wrote them.
        files: Their names; where two hold the same bytes, the earlier keeps them.
    """
    models = {file: open_graph(folder / file) for file in files}
    sizes = [{tensor.nbytes for _, tensor in _large(model)} for model in models.values()]
    common = {size for size in set().union(*sizes) if sum(size in each for each in sizes) > 1}
    kept: dict[bytes, ir.ExternalTensor] = {}
    saved = {}
    for file, model in models.items():
        weights = [(value, tensor) for value, tensor in _large(model) if tensor.nbytes in common]
        digests = {value: hashlib.sha256(tensor.tobytes()).digest() for value, tensor in weights}
        repeated = {value: kept[digests[value]] for value, _ in weights if digests[value] in kept}
        if repeated:
            saved[file] = sum(tensor.nbytes for tensor in repeated.values())
            _point_elsewhere(model, folder / file, repeated)
        kept |= {digests[value]: tensor for value, tensor in weights if value not in repeated}
    return saved


def _large(model: ir.Model) -> Iterator[tuple[ir.Value, ir.ExternalTensor]]:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes >= WORTH_SHARING_BYTES:
            yield value, tensor


def _point_elsewhere(model: ir.Model, path: Path, repeated: dict[ir.Value, ir.ExternalTensor]) -> None:
    """Write a graph anew whose repeated weights are those of another file."""
    data = f"{path.name}.data"
    initializers = model.graph.initializers.values()
    own = {
        value: _apart_from_file(value.const_value)
        for value in initializers
        if isinstance(value.const_value, ir.ExternalTensor) and value not in repeated
    }
    moved = ir.external_data.convert_tensors_to_external(list(own.values()), path.parent, data, alignment=PAGE_BYTES)
    for value, tensor in zip(own, moved, strict=True):
        value.const_value = tensor
    for value, tensor in repeated.items():
        value.const_value = _reference(value, tensor)
    if not own:
        (path.parent / data).unlink()
    ir.save(model, path)


def _apart_from_file(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """Return a small tensor in memory: its file is about to be written anew, of which the library warns."""
    return tensor if tensor.nbytes > _HELD_BYTES else ir.Tensor(np.array(tensor.numpy()), name=tensor.name)


def _reference(value: ir.Value, stored: ir.ExternalTensor) -> ir.ExternalTensor:
    """Return the tensor of a value, of its own dtype and shape, in the bytes of another."""
    own = value.const_value
    if own is None or own.nbytes != stored.nbytes:
        raise ValueError(f"{value.name} has other bytes than {stored.name}")
    return ir.ExternalTensor(
        stored.location,
        stored.offset,
        stored.length,
        own.dtype,
        shape=ir.Shape(own.shape),
        name=str(value.name),
        base_dir=stored.base_dir,
    )
