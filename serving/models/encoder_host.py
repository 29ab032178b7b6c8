"""The vision encoder of a bundle alone, in a process of its own: it sees what models elsewhere send."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bundle.directory import open_bundle
from bundle.errors import EngineDeadError
from runtime.canary import check_canary
from serving.models.elsewhere import Features, SentImage
from serving.models.images import DecodedImage
from serving.models.pool import PreprocessPool
from serving.models.targets import check_target
from serving.models.vision import VisionStage
from serving.protocol import Health
from serving.settings import EngineSettings


class EncoderHost:
    """One bundle's vision encoder, its cache and its thread. Used from one event loop.

    Args:
        directory: The bundle's.
        settings: Batch size, threads, bytes of kept features.
    """

    def __init__(self, directory: Path, settings: EngineSettings) -> None:
        self._directory = directory
        self._settings = settings
        self._pool = PreprocessPool(settings)
        self._stage: VisionStage | None = None
        self._name = directory.name
        self._num_running = 0

    async def start(self) -> None:
        """Load, check and warm up, off the event loop.

        Raises:
            BundleError: The bundle is refused.
            MachineError: This machine cannot run it.
        """
        self._stage = await asyncio.to_thread(self._load)

    def _load(self) -> VisionStage:
        settings = self._settings
        bundle = open_bundle(self._directory, verify=settings.verify_digests, allow_ungated=settings.allow_ungated)
        check_target(bundle, settings)
        stage = VisionStage(bundle, settings, self._pool)
        if settings.check_golden:
            check_canary(bundle, {stage.name: stage.session})
        for worker, warm_up in stage.workers.items():
            worker.start(warm_up)
        self._name = bundle.name
        return stage

    async def see(self, image: SentImage) -> Features:
        """Return what the encoder makes of an image, from the cache where it is there; not to be written to.

        Raises:
            EngineDeadError: It is not loaded, or stopped.
        """
        if self._stage is None:
            raise EngineDeadError("the encoder is not loaded; send the image again")
        decoded = DecodedImage(
            image.key,
            image.cut_image,
            image.layout,
            image.with_tower,
            image.side_px,
            image.noise_step,
            image.question,
        )
        self._num_running += 1
        try:
            return await self._stage.see(image.key, decoded)
        finally:
            self._num_running -= 1

    async def health(self) -> Health:
        """Return whether the encoder serves, and its numbers."""
        if self._stage is None:
            return Health(is_ready=False, reason="the encoder is being loaded", is_starting=True)
        watched = [*self._stage.workers, *self._pool.crews]
        for each in watched:
            each.relieve()
        reason = "; ".join(filter(None, (each.fault for each in watched)))
        gauges = {"num_requests_running": float(self._num_running), **self._stage.gauges}
        gauges["num_images_waiting"] = float(self._num_running)
        is_alive = not any(each.needs_restart for each in watched)
        return Health(not reason, reason, {self._name: gauges}, is_alive)

    async def close(self) -> None:
        """Stop; what is unfinished fails."""
        if self._stage is not None:
            for worker in self._stage.workers:
                await asyncio.to_thread(worker.close)
        self._pool.close()
