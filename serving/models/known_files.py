"""Image files that were decoded before, by what is in them: one whose features are kept needs no decoding."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass

from bundle.image import TileLayout

_MOST_FILES = 4096
"""Remembered at once; each takes about as many bytes as a line of text."""


@dataclass(frozen=True)
class KnownFile:
    """What decoding a file has told.

    Attributes:
        key: Of its features.
        layout: How it is cut into tiles.
    """

    key: bytes
    layout: TileLayout


class KnownFiles:
    """Files by the SHA-256 of their bytes, least recently used dropped first. Safe between threads."""

    def __init__(self) -> None:
        self._files: OrderedDict[bytes, KnownFile] = OrderedDict()
        self._lock = threading.Lock()

    def try_get(self, digest: bytes) -> KnownFile | None:
        """Return what is known of a file, now the most recently used; None of one that is new."""
        with self._lock:
            if digest in self._files:
                self._files.move_to_end(digest)
            return self._files.get(digest)

    def put(self, digest: bytes, known: KnownFile) -> None:
        """Remember a file."""
        with self._lock:
            self._files[digest] = known
            if len(self._files) > _MOST_FILES:
                self._files.popitem(last=False)


def file_digest(data: bytes) -> bytes:
    """Return the SHA-256 of a file's bytes; half a millisecond for a megabyte."""
    return hashlib.sha256(data).digest()
