"""What every served model is: a bundle opened at construction, serving after `start`. Used from one event loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from bundle.manifest import Manifest
from serving.engine.worker import Worker
from serving.models.admission import Admission
from serving.models.cards import card_of
from serving.protocol import ModelCard
from serving.settings import EngineSettings


class Model(ABC):
    """One model of a client.

    Class attributes:
        does: What it is for, as the refusal of another task says it.

    Args:
        manifest: Of the bundle.
        settings: Slots, batches, threads, limits.
    """

    does: ClassVar[str]

    def __init__(self, manifest: Manifest, settings: EngineSettings) -> None:
        self._manifest = manifest
        self._settings = settings
        self._admission = Admission(manifest.name, settings.max_sequences + settings.max_waiting)

    @property
    def card(self) -> ModelCard:
        """What `/v1/models` tells of it."""
        return card_of(self._manifest, self._settings)

    @property
    def start_line(self) -> str:
        """The line printed at start: name and weights."""
        return f"{self._manifest.name}: {self._manifest.weight_bytes / 2**20:.0f} MiB of weights"

    @property
    @abstractmethod
    def workers(self) -> tuple[Worker[Any], ...]:
        """Its threads."""

    @property
    @abstractmethod
    def gauges(self) -> dict[str, float]:
        """Numbers for `/metrics`."""

    @abstractmethod
    def warm_up(self) -> None:
        """Run every graph once, so that no request pays for the first run."""

    def start(self) -> None:
        """Warm up and start the threads; blocks for the length of a few steps."""
        self.warm_up()
        for worker in self.workers:
            worker.start()

    def close(self) -> None:
        """Stop the threads; unfinished requests fail with EngineDeadError."""
        for worker in self.workers:
            worker.close()
