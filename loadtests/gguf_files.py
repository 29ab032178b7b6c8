"""GGUF files: what their weights take, and a copy in which every weight is float32 again."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np

from bundle.errors import CheckpointError
from export.gguf_decoder import open_gguf, read_field

_FILE_TYPE = "general.file_type"
_OF_THE_WRITER = ("GGUF.", "general.architecture", "general.quantization_version", _FILE_TYPE)
"""Fields that a writer sets itself, or that say how the weights were stored."""
_ALL_FLOAT32 = 0
"""llama.h: LLAMA_FTYPE_ALL_F32."""


def weight_bytes(file: Path) -> int:
    """Return the size of all tensors as stored: without vocabulary, merges and template."""
    return sum(int(tensor.n_bytes) for tensor in open_gguf(file).tensors)


def weight_error(parent: Path, file: Path) -> float:
    """Return the length of what a file's weights differ by from its parent's, over the length of the parent's.

    Raises:
        CheckpointError: The file has not the parent's tensors.
    """
    restored = {tensor.name: tensor for tensor in open_gguf(file).tensors}
    off, whole = 0.0, 0.0
    for tensor in open_gguf(parent).tensors:
        if tensor.name not in restored or list(restored[tensor.name].shape) != list(tensor.shape):
            raise CheckpointError(f"{file} has no {tensor.name} of the shape that it has in {parent}")
        expected, found = _restored(parent, tensor), _restored(file, restored[tensor.name])
        off += float(np.square(found - expected, dtype=np.float64).sum())
        whole += float(np.square(expected, dtype=np.float64).sum())
    return math.sqrt(off / whole)


def restore_float32(file: Path, output: Path) -> None:
    """Write a copy of a file with the same metadata, whose tensors are what the stored ones stand for, in float32.

    One tensor is in memory at a time.

    Raises:
        CheckpointError: The file cannot be read, or has a type that the `gguf` package cannot restore.
    """
    reader = open_gguf(file)
    writer = gguf.GGUFWriter(output, str(read_field(reader, "general.architecture")))
    for name, field in reader.fields.items():
        if not name.startswith(_OF_THE_WRITER):
            element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], element)
    writer.add_uint32(_FILE_TYPE, _ALL_FLOAT32)
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), 4 * int(tensor.n_elements))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(_restored(file, tensor))
    writer.close()


def _restored(file: Path, tensor: gguf.ReaderTensor) -> np.ndarray:
    try:
        return np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
    except NotImplementedError as error:
        raise CheckpointError(
            f"{file} stores {tensor.name} as {tensor.tensor_type.name}, which the gguf package cannot restore"
        ) from error
