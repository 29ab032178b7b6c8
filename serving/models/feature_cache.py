"""Image features by content, for all models of a process: what was encoded once is not encoded again.

A key says what was encoded and by what (`serving.models.vision`), so models with the same tower find each other's.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Features = npt.NDArray[Any]

ENTRY_BYTES = 512
"""That an entry takes beside its numbers: digest, array, place in the order. 128 numbers are as large."""


class CacheShare:
    """One model's use of the cache, counted by itself.

    Args:
        cache: Of all models.

    Attributes:
        num_bytes: Of what this model put in and is still there; all models' sum up to the cache's.
        num_hits: Features that this model found, whoever put them in.
        num_misses: Features that it did not find.
    """

    def __init__(self, cache: FeatureCache) -> None:
        self._cache = cache
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0

    def try_get(self, key: bytes) -> Features | None:
        """Return the features of a digest, now the most recently used; None when they are not here."""
        features = self._cache.try_get(key)
        self.num_hits += features is not None
        self.num_misses += features is None
        return features

    def put(self, key: bytes, features: Features) -> None:
        """Keep features, as `FeatureCache.put`."""
        self._cache.put(key, features, self)


@dataclass(frozen=True)
class _Entry:
    """Features, and whose they are."""

    features: Features
    share: CacheShare | None

    @property
    def num_bytes(self) -> int:
        return self.features.nbytes + ENTRY_BYTES


class FeatureCache:
    """Arrays by digest, least recently used dropped first, never more bytes than allowed. Safe between threads.

    Args:
        max_bytes: Of all models together; 0 keeps nothing.

    Attributes:
        num_bytes: Held now.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0

    def share(self) -> CacheShare:
        """Return what one more model uses the cache by."""
        return CacheShare(self)

    def try_get(self, key: bytes) -> Features | None:
        """Return the features of a digest, now the most recently used; None when they are not here."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry.features

    def put(self, key: bytes, features: Features, share: CacheShare | None = None) -> None:
        """Keep features, dropping the least recently used; features larger than the whole cache are not kept.

        Args:
            key: Their digest.
            features: Not to be written to from now on.
            share: Whose bytes they are.
        """
        entry = _Entry(features, share)
        with self._lock:
            if key in self._entries or entry.num_bytes > self._max_bytes:
                return
            while self.num_bytes + entry.num_bytes > self._max_bytes:
                self._count(self._entries.popitem(last=False)[1], -1)
            features.flags.writeable = False
            self._entries[key] = entry
            self._count(entry, 1)

    def clear(self) -> None:
        """Drop everything; counts of hits and misses stay."""
        with self._lock:
            while self._entries:
                self._count(self._entries.popitem()[1], -1)

    def _count(self, entry: _Entry, sign: int) -> None:
        self.num_bytes += sign * entry.num_bytes
        if entry.share is not None:
            entry.share.num_bytes += sign * entry.num_bytes
