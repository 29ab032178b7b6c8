"""Kernels that TensorRT-RTX compiles when an engine first runs on a card, kept on disk for the next start."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.engines import EngineRecord
from bundle.machine import cache_folder
from runtime.tensorrt.library import Library

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KernelCache:
    """Of one engine.

    Attributes:
        path: Its file; TensorRT-RTX itself refuses one of another card, driver or version.
        config: How contexts are made; None for TensorRT, whose engines hold their kernels.
        kernels: TensorRT-RTX's own; None for TensorRT.
    """

    path: Path
    config: Any
    kernels: Any

    @classmethod
    def of(cls, library: Library, engine: Any, record: EngineRecord) -> KernelCache:
        """Return the cache of an engine, with what an earlier process left."""
        path = cache_folder() / "kernels" / f"{record.contents.sha256}.cache"
        if library.flavour == "tensorrt":
            return cls(path, None, None)
        config = engine.create_runtime_config()
        kernels = config.create_runtime_cache()
        if path.is_file() and not kernels.deserialize(path.read_bytes()):
            logger.info("%s is of another card, driver or version; kernels are compiled anew", path)
        config.set_runtime_cache(kernels)
        return cls(path, config, kernels)

    def context(self, engine: Any) -> Any:
        """Return a new execution context, None where there is no memory for it, and keep what was compiled for it."""
        if self.config is None:
            return engine.create_execution_context()
        made = engine.create_execution_context(self.config)
        if made is not None:
            self.keep()
        return made

    def keep(self) -> None:
        """Write what was compiled until now: when a context was made, and what its first run wanted beside."""
        if self.kernels is not None:
            self._save(bytes(memoryview(self.kernels.serialize())))

    def _save(self, content: bytes) -> None:
        """Write the file whole or not at all; without it the next start compiles again."""
        aside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(content)
            os.replace(aside, self.path)
        except OSError as error:
            logger.warning("%s cannot be written (%s): kernels are compiled at every start", self.path, error.strerror)
