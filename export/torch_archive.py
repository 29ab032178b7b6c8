"""PyTorch's own files (torch.save since 1.6) as maps of tensors: an archive whose members lie in it uncompressed.

`NAME/data.pkl` says what the tensors are, `NAME/data/KEY` are the numbers of a storage, `NAME/byteorder` their order.
"""

from __future__ import annotations

import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.errors import CheckpointError
from export.lfs import require_content
from export.state_pickle import MAX_BYTES, StatedTensor, read_pickle

_PICKLE = "data.pkl"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled magic number 0x1950a86a20f9469cfc6c with which torch.save began until 1.5."""
_SAVE_AGAIN = "Write it again: torch.save(torch.load(FILE, weights_only=True), FILE) with a newer PyTorch"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Of a member: its mark, and the lengths of its name and of what stands between name and bytes (APPNOTE 4.3.7)."""
_ENCRYPTED = 1
_MAX_AXES, _MAX_SIZE = 32, 1 << 62
_MAX_REPEATED = 1 << 20
"""Numbers that an expanded tensor may have beyond those of its storage."""
_DEPTH = 3
"""Dictionaries around a state dict: {"state_dict": ...}."""
_SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class ArchivedTensor:
    """Where a tensor of an archive lies in the file.

    Attributes:
        dtype: As safetensors calls it.
        shape: Its sizes.
        offset: Of its first byte in the file.
        strides: Steps along its axes, in numbers; None where its numbers are one behind another.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...] | None


def read_archive(file: Path) -> dict[str, ArchivedTensor]:
    """Return where the tensors of a state dict lie, by name; nothing else that the file holds is read, nor is it run.

    Raises:
        CheckpointError: It is no such file, of another format of PyTorch's, damaged, or holds code.
    """
    require_content(file)
    try:
        archive = _Archive(file)
        stated = _state_dict(read_pickle(archive.pickle()))
        return {name: _located(archive, name, tensor) for name, tensor in stated.items()}
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, struct.error, NotImplementedError) as error:
        raise CheckpointError(f"{file} is not a file of torch.save, or was cut short: {error}") from error


class _Archive:
    """The members of a file, each as where its bytes begin and how many they are."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with file.open("rb") as stream:
            if stream.read(len(_LEGACY)) == _LEGACY:
                raise CheckpointError(f"it is in PyTorch's format before 1.6, which is not read. {_SAVE_AGAIN}")
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        self._members = {member.filename: member for member in members}
        if len(self._members) != len(members):
            raise CheckpointError("it has two members of one name")
        found = [name for name in self._members if name.count("/") == 1 and name.endswith(f"/{_PICKLE}")]
        if len(found) != 1:
            raise CheckpointError(f"it is an archive with {len(found)} {_PICKLE}; torch.save writes one")
        self._root = found[0].removesuffix(_PICKLE)
        if f"{self._root}constants.pkl" in self._members:
            raise CheckpointError("it is a program of TorchScript, which is not read; save its state_dict()")
        if f"{self._root}byteorder" in self._members and self._read("byteorder", 16) != b"little":
            raise CheckpointError(f"its numbers are not little-endian. {_SAVE_AGAIN} on a usual machine")

    def pickle(self) -> bytes:
        """Return the bytes of the pickle."""
        return self._read(_PICKLE, MAX_BYTES)

    def find(self, name: str) -> tuple[int, int]:
        """Return where a member begins in the file, and its size.

        Raises:
            CheckpointError: It is not there, compressed, or not whole.
        """
        member = self._members.get(f"{self._root}{name}")
        if member is None:
            raise CheckpointError(f"it lacks its member {name[:80]}; it was cut short, or changed")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
            raise CheckpointError(
                f"its member {name} is compressed or encrypted, which torch.save never does. {_SAVE_AGAIN}"
            )
        with self._file.open("rb") as stream:
            stream.seek(member.header_offset)
            mark, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
        start = member.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        if mark != b"PK\x03\x04" or start + member.file_size > self._file.stat().st_size:
            raise CheckpointError(f"its member {name} is not where the archive says; it was cut short, or changed")
        return start, member.file_size

    def _read(self, name: str, limit_bytes: int) -> bytes:
        start, size = self.find(name)
        if size > limit_bytes:
            raise CheckpointError(f"its member {name} has {size} bytes; at most {limit_bytes} are read")
        with self._file.open("rb") as stream:
            stream.seek(start)
            return stream.read(size)


def _state_dict(value: Any) -> dict[str, StatedTensor]:
    """Return the tensors of the one dictionary that has some, whatever stands around it."""
    found: dict[str, dict[str, StatedTensor]] = {}
    seen: set[int] = set()
    left = [("", value)]
    for _ in range(_DEPTH):
        inner = []
        for path, each in left:
            if type(each) is not dict or id(each) in seen or not all(type(key) is str for key in each):
                continue
            seen.add(id(each))
            if tensors := {name: entry for name, entry in each.items() if isinstance(entry, StatedTensor)}:
                found[path] = tensors
            inner += [(f"{path}[{name[:40]!r}]", entry) for name, entry in each.items() if type(entry) is dict]
        left = inner
    if len(found) != 1:
        where = ", ".join(path[:80] or "the top" for path in list(found)[:5]) or "no dictionary of names"
        raise CheckpointError(f"tensors are under {where}; one dictionary is read. Save the one that is meant alone")
    return next(iter(found.values()))


def _located(archive: _Archive, name: str, tensor: StatedTensor) -> ArchivedTensor:
    """Return where a tensor lies, after checking that all of it lies in its storage."""
    storage, name = tensor.storage, name[:200]
    item = _SIZES[storage.dtype]
    start, size = archive.find(f"data/{storage.key}")
    whole = _whole_numbers(name, (storage.num, tensor.start), tensor.shape, tensor.strides)
    (num, first), shape, strides = whole
    if num * item > size:
        raise CheckpointError(f"storage {storage.key} of {name!r} has {size} bytes; {num} numbers are said to be in it")
    end = first + sum((count - 1) * step for count, step in zip(shape, strides, strict=True)) + 1
    if (0 in shape and first > num) or (0 not in shape and end > num):
        raise CheckpointError(
            f"{name!r} of shape {list(shape)}, strides {list(strides)} and offset {first} leaves its storage of {num} "
            "numbers. The file is damaged, or was made to be"
        )
    if math.prod(shape) > num + _MAX_REPEATED:
        raise CheckpointError(f"{name!r} of shape {list(shape)} repeats {num} numbers; save it by .contiguous()")
    dense = _is_dense(shape, strides)
    return ArchivedTensor(storage.dtype, shape, start + first * item, None if dense else strides)


def _whole_numbers(name: str, *lists: Any) -> tuple[tuple[int, ...], ...]:
    for each in lists:
        if type(each) is not tuple or len(each) > _MAX_AXES:
            raise CheckpointError(f"{name!r} has no sizes and strides of at most {_MAX_AXES} axes")
        if not all(type(number) is int and 0 <= number < _MAX_SIZE for number in each):
            raise CheckpointError(f"{name!r} has sizes, strides or an offset that are no whole numbers from 0 on")
    if len(lists[-1]) != len(lists[-2]):
        raise CheckpointError(f"{name!r} has {len(lists[-2])} sizes and {len(lists[-1])} strides")
    return lists


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether numbers lie one behind another in the order of the axes."""
    step = 1
    for count, stride in zip(reversed(shape), reversed(strides), strict=True):
        if count != 1 and stride != step:
            return 0 in shape
        step *= count
    return True
