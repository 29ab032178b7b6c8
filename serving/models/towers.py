"""Encoders of images that several models have in common: one in memory where they are the same files."""

from __future__ import annotations

import hashlib
import threading
from weakref import WeakValueDictionary

from bundle.directory import Bundle
from bundle.manifest import ComponentName, Manifest
from runtime.encoder import Encoder, open_encoder
from serving.settings import EngineSettings


class Towers:
    """Opens encoders, and gives one that is open already to whoever asks for the same. Safe between threads.

    An encoder lives as long as a model holds it. Those whose runs are captured on a device are not shared: a run's
    memory is its own.
    """

    def __init__(self) -> None:
        self._open: WeakValueDictionary[str, Encoder] = WeakValueDictionary()
        self._lock = threading.Lock()

    def open(self, bundle: Bundle, name: ComponentName, settings: EngineSettings) -> Encoder:
        """Return an encoder of a bundle, as `open_encoder`.

        Args:
            bundle: Whose graph it is.
            name: The graph's, in the manifest.
            settings: Of all models alike.

        Raises:
            As `open_encoder`.
        """
        identity = _identity(bundle.manifest, name)
        with self._lock:
            encoder = self._open.get(identity)
            if encoder is None:
                encoder = open_encoder(bundle, name, settings)
                if not encoder.is_captured:
                    self._open[identity] = encoder
            return encoder


def _identity(manifest: Manifest, name: ComponentName) -> str:
    """Return what tells a graph from others: the digests of its files, and what the manifest says of it."""
    component = manifest.components[name]
    digests = [record.sha256 for file, record in sorted(manifest.files.items()) if file.startswith(component.file)]
    told = component.model_dump_json(exclude={"file"})
    return hashlib.sha256("|".join([*digests, told]).encode()).hexdigest()
