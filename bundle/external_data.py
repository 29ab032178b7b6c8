"""Which files a graph keeps its weights in, read off the `.onnx` file without a graph-building library.

A server must know what a runtime will open before it lets it. Only the fields that lead to a tensor's external data are
followed; the numbers are those of onnx.proto (ONNX 1.20).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from bundle.errors import BundleFileError

_NODE: Mapping[int, str] = {5: "attribute"}
_FIELDS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": _NODE,
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Message -> field number -> the message in it."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_NESTED = 64
_LARGEST_TAG = (1 << 32) - 1


def external_files(path: Path) -> set[str]:
    """Return the locations, relative to the graph's folder, of the files that hold its weights.

    Raises:
        BundleFileError: The file cannot be read, or is not a serialized graph.
    """
    try:
        content = memoryview(path.read_bytes())
        return set(_locations(content, "model", 0))
    except OSError as error:
        raise BundleFileError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise BundleFileError(f"{path} is not an ONNX graph ({error}). Export the checkpoint again.") from error


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _MOST_NESTED:
        raise ValueError(f"more than {_MOST_NESTED} graphs and nodes inside each other")
    for number, value in fields(message):
        inner = _FIELDS[kind].get(number)
        if inner == "entry":
            key, text = _entry(value)
            if key == "location":
                yield text
        elif inner is not None:
            yield from _locations(value, inner, depth + 1)


def _entry(message: memoryview) -> tuple[str, str]:
    texts = {number: bytes(value).decode() for number, value in fields(message)}
    return texts.get(1, ""), texts.get(2, "")


def fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of the fields that have a length; skip all others."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag > _LARGEST_TAG:  # readers drop the bits above, and find another field than is written here
            raise ValueError(f"a field's number of more than 29 bits before byte {at}")
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        elif wire == _BYTES:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise ValueError(f"a field of {length} bytes ends behind the file")
            yield number, message[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {wire} at byte {at}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return a number of variable length and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits at byte {at}")
