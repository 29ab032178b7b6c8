"""Named arrays in an `.npz` file of a stranger, whose sizes are known before anything is unpacked."""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bundle.states import DTYPES


def read_arrays(path: Path, most_arrays: int, most_bytes: int) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a file by name.

    Raises:
        Exception: The file is missing, damaged or holds more than allowed. numpy parses a header as Python, and lets
            out whatever comes of it.
    """
    _check_sizes(path, most_arrays, most_bytes)
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _check_sizes(path: Path, most_arrays: int, most_bytes: int) -> None:
    """Check what an archive will unpack to, by its headers: 3 MB may hold 3 GB.

    Raises:
        ValueError: It is more than allowed, or an array is larger than its bytes.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        num_bytes = sum(member.file_size for member in members)
        if len(members) > most_arrays or num_bytes > most_bytes:
            raise ValueError(
                f"{len(members)} arrays of {num_bytes} bytes; it has at most {most_arrays} of {most_bytes}"
            )
        for member in members:
            with archive.open(member) as file:
                _check_array(file, member)


def _check_array(file: IO[bytes], member: zipfile.ZipInfo) -> None:
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = read[np.lib.format.read_magic(file)](file)
    if dtype.name not in DTYPES:
        raise ValueError(f"{member.filename} is an array of {dtype}; known are {', '.join(DTYPES)}")
    if prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(
            f"{member.filename} says that it is of shape {list(shape)}, and holds {member.file_size} bytes"
        )
