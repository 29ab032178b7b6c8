"""Image features by content: what was encoded once is not encoded again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy.typing as npt

Features = npt.NDArray[Any]

ENTRY_BYTES = 512
"""That an entry takes beside its numbers: digest, array, place in the order. 128 numbers are as large."""


class FeatureCache:
    """Arrays by digest, least recently used dropped first, never more bytes than allowed. Safe between threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, Features] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0

    def try_get(self, key: bytes) -> Features | None:
        """Return the features of a digest, now the most recently used; None when they are not here."""
        with self._lock:
            features = self._entries.get(key)
            if features is None:
                self.num_misses += 1
                return None
            self._entries.move_to_end(key)
            self.num_hits += 1
            return features

    def put(self, key: bytes, features: Features) -> None:
        """Keep features, dropping the least recently used; features larger than the whole cache are not kept."""
        with self._lock:
            if key in self._entries or _held_bytes(features) > self._max_bytes:
                return
            while self.num_bytes + _held_bytes(features) > self._max_bytes:
                self.num_bytes -= _held_bytes(self._entries.popitem(last=False)[1])
            features.flags.writeable = False
            self._entries[key] = features
            self.num_bytes += _held_bytes(features)


def _held_bytes(features: Features) -> int:
    return features.nbytes + ENTRY_BYTES
