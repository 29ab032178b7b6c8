"""What is done to a request before it crosses: templating and tokenizing, decoding images, making them an encoder's.

Beside the threads for it, the pool has the other thing that all models of a client share: image features that are kept.

Four crews, so that text never waits behind images, small images behind costly ones, nor anything behind a grammar.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

from bundle.frames.limits import DEFAULT_VIDEO_LIMITS
from bundle.frames.options import FrameOptions
from bundle.image import ImageSpec
from serving.models.crew import Crew
from serving.models.cut_frames import CutFrames, FrameRoom
from serving.models.cut_image import CutImage, cut_if_cheap
from serving.models.elsewhere import Elsewhere
from serving.models.feature_cache import FeatureCache
from serving.models.image_process import ImageProcess
from serving.models.towers import Towers
from serving.settings import EngineSettings
from serving.watch import Watched

_PIXELS_AT_ONCE = 28_000_000
"""Of costly images that are decoded at the same time, at 9 bytes each: two of 12 megapixels, or one of any size."""


class _Room:
    """Room for pixels, used by threads; what is larger than all of it goes in alone."""

    def __init__(self, num_pixels: int) -> None:
        self._num_pixels = num_pixels
        self._num_taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, num_pixels: int) -> Iterator[None]:
        """Hold room for the length of the block."""
        wanted = min(num_pixels, self._num_pixels)
        with self._changed:
            self._changed.wait_for(lambda: self._num_taken + wanted <= self._num_pixels)
            self._num_taken += wanted
        try:
            yield
        finally:
            with self._changed:
                self._num_taken -= wanted
                self._changed.notify_all()


class PreprocessPool:
    """Threads, processes and kept image features, shared by the models of one client. Used from one event loop.

    Args:
        settings: Threads of each crew, how long they may take, bytes of kept features.
        elsewhere: Encodes the images; None: the models' own encoders do.

    Attributes:
        features: Of the images of all models.
        towers: Their encoders.
    """

    def __init__(self, settings: EngineSettings, elsewhere: Elsewhere | None = None) -> None:
        self.elsewhere = elsewhere
        num_threads, patience = settings.preprocess_threads, settings.patience
        self.features = FeatureCache(settings.image_cache_bytes)
        self.towers = Towers()
        self.text = Crew("preprocess-text", num_threads, patience)
        self.images = Crew("preprocess-images", num_threads, patience)
        self._costly = Crew("preprocess-costly-images", num_threads, patience)
        self.grammars = Crew("grammars", 1, patience)
        self._timeout_s = settings.image_timeout_s
        self._room = _Room(_PIXELS_AT_ONCE)
        self._of_thread = threading.local()
        self._processes: list[ImageProcess] = []

    @property
    def crews(self) -> tuple[Watched, ...]:
        """What may hang."""
        return self.text, self.images, self._costly, self.grammars

    @property
    def num_preprocess_waiting(self) -> int:
        """Calls that wait for a thread for images, of all models together."""
        return self.images.num_waiting + self._costly.num_waiting

    async def cut(self, owner: Hashable, spec: ImageSpec, data: bytes) -> CutImage:
        """Return an image decoded, and cut where that makes it smaller.

        Args:
            owner: The request: requests take turns.
            spec: How it is cut.
            data: The encoded image.

        Raises:
            ImageError: The bytes are not an image, one over the limits, or one that takes too long.
            OutOfMemoryError: This machine lacks memory for it.
            EngineDeadError: The pool is closed or hangs.
        """
        cut = await self.images.run(owner, cut_if_cheap, spec, data)
        if isinstance(cut, CutImage):
            return cut
        is_unwanted = threading.Event()
        try:
            return await self._costly.run(owner, self._cut_apart, spec, data, cut.pixels, is_unwanted)
        finally:
            is_unwanted.set()

    async def cut_frames(
        self, owner: Hashable, spec: ImageSpec, files: Sequence[bytes], options: FrameOptions, room: FrameRoom
    ) -> CutFrames:
        """Return a video's frames as the pictures of their layout; never decoded in this process.

        Args:
            owner: The request: requests take turns.
            spec: How an image is cut.
            files: One file, or a picture for each frame.
            options: Which frames, and their layout.
            room: For them.

        Raises:
            RequestError: As `cut_frames` of `serving.models.cut_frames`; or it takes too long.
            MachineError: This machine lacks memory, or what decodes such a file.
            EngineDeadError: The pool is closed or hangs.
        """
        is_unwanted = threading.Event()
        # One frame is decoded at a time; a picture of a list may be as large as any image
        num_pixels = DEFAULT_VIDEO_LIMITS.max_pixels if options.list_fps is None else _PIXELS_AT_ONCE
        try:
            return await self._costly.run(
                owner, self._cut_frames_apart, spec, files, options, room, num_pixels, is_unwanted
            )
        finally:
            is_unwanted.set()

    def close(self) -> None:
        """Refuse new work; what waits fails, and what runs is not waited for."""
        for crew in (self.text, self.images, self._costly, self.grammars):
            crew.close()
        for process in self._processes:
            process.stop()

    def _cut_apart(self, spec: ImageSpec, data: bytes, num_pixels: int, is_unwanted: threading.Event) -> CutImage:
        """Cut an image in the child process of this thread, once there is room for its pixels."""
        with self._room.taken(num_pixels):
            return self._process.cut(spec, data, is_unwanted)

    def _cut_frames_apart(
        self,
        spec: ImageSpec,
        files: Sequence[bytes],
        options: FrameOptions,
        room: FrameRoom,
        num_pixels: int,
        is_unwanted: threading.Event,
    ) -> CutFrames:
        """Cut a video in the child process of this thread, once there is room for a frame's pixels."""
        with self._room.taken(num_pixels):
            return self._process.cut_frames(spec, files, options, room, is_unwanted)

    @property
    def _process(self) -> ImageProcess:
        """The child process of this thread."""
        if not hasattr(self._of_thread, "process"):
            self._of_thread.process = ImageProcess(self._timeout_s)
            self._processes.append(self._of_thread.process)
        process: ImageProcess = self._of_thread.process
        return process
