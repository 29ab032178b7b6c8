"""A child process that decodes costly images and videos, so that one which takes too long can be stopped.

Threads cannot be stopped, and the decoders of image files take as long as the file wants. What crosses between the two
processes is a line of JSON and raw bytes, in both directions: nothing that an image's bytes might make of the child can
be more to the parent than a wrong picture.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import BufferedRWPair
from typing import Any, TypeVar

from PIL import Image

from bundle.errors import (
    ContextLengthError,
    ImageError,
    MachineError,
    MissingExtraError,
    OutOfMemoryError,
    ParameterError,
    PocketVLMError,
    RequestError,
)
from bundle.frames.options import FrameOptions
from bundle.image import ImageSpec
from serving.engine.faults import explained
from serving.models.cut_frames import CutFrames, FrameRoom, cut_frames
from serving.models.cut_image import CutImage, cut_image

_MODULE = "serving.models.image_process"
_POLL_S = 0.05
"""How soon a caller's leaving is seen."""
_PIECE_BYTES = 1 << 20
_MEMORY_BYTES = 4 << 30
"""Address space of a child: 50 megapixels of four floats, four times over."""
_KILLED_FIRST = "900"
"""Out of 1000: where the machine runs out of memory, the kernel takes a child before the server."""
_ERRORS: dict[str, type[PocketVLMError]] = {
    kind.__name__: kind
    for kind in (ImageError, ParameterError, ContextLengthError, OutOfMemoryError, MissingExtraError, MachineError)
}
"""What a child tells; whatever else goes wrong in it is a MachineError."""


Cut = TypeVar("Cut")


@dataclass(frozen=True)
class _Kind:
    """What is decoded, as messages name it, and what to do where that takes too long."""

    noun: str
    advice: str


_IMAGE = _Kind("image", "Scale it down, or save it as a plain JPEG or PNG.")
_VIDEO = _Kind("video", "Ask for fewer frames, scale it down, or cut it.")


class ImageProcess:
    """One child, started when it is first needed, and again after it was stopped. Used by one thread at a time.

    Args:
        timeout_s: For one image.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """Of the child, while there is one."""
        return self._process.pid if self._process else None

    def cut(self, spec: ImageSpec, data: bytes, is_unwanted: threading.Event) -> CutImage:
        """Return an image as `cut_image` does; the child is stopped when that takes too long.

        Args:
            spec: How it is cut.
            data: The encoded image.
            is_unwanted: Set when nobody waits any more.

        Raises:
            ImageError: As `cut_image`; or it took too long, or broke the decoder.
            OutOfMemoryError: The child lacked memory.
            MachineError: The child could not be started, or was stopped from outside.
        """
        asked = {"spec": spec.model_dump_json()}
        return self._answered(asked, [data], _IMAGE, is_unwanted, _cut_of)

    def cut_frames(
        self,
        spec: ImageSpec,
        files: Sequence[bytes],
        options: FrameOptions,
        room: FrameRoom,
        is_unwanted: threading.Event,
    ) -> CutFrames:
        """Return a video's pictures as `cut_frames` does; the child is stopped when that takes too long.

        Args:
            spec: How an image is cut.
            files: One file, or a picture for each frame.
            options: Which frames, and their layout.
            room: For them.
            is_unwanted: Set when nobody waits any more.

        Raises:
            RequestError: As `cut_frames`; or it took too long, or broke the decoder.
            MachineError: The child lacked something, could not be started, or was stopped from outside.
        """
        asked = {"spec": spec.model_dump_json(), "frames": {"options": asdict(options), "room": asdict(room)}}
        return self._answered(asked, files, _VIDEO, is_unwanted, _frames_of)

    def _answered(
        self,
        asked: dict[str, Any],
        files: Sequence[bytes],
        kind: _Kind,
        is_unwanted: threading.Event,
        read: Callable[[dict[str, Any], _Exchange], Cut],
    ) -> Cut:
        """Return what `read` makes of the head of the child's answer and of the bytes behind it."""
        exchange = _Exchange(self._started(), time.monotonic() + self._timeout_s, is_unwanted)
        num_bytes = sum(map(len, files))
        try:
            head = {**asked, "sizes": [len(file) for file in files], "timeout_s": self._timeout_s}
            exchange.send(json.dumps(head).encode() + b"\n")
            for file in files:
                exchange.send(file)
            answer = json.loads(exchange.line())
            if "error" in answer:
                raise _error_of(answer)
            return read(answer, exchange)
        except TimeoutError as error:
            self.stop()
            raise ImageError(
                f"the {kind.noun} of {num_bytes} bytes was not decoded within {self._timeout_s:g} s. {kind.advice}"
            ) from error
        except OSError as error:
            raise self._broken(kind, num_bytes) from error

    def stop(self) -> None:
        """End the child at once."""
        process, channel = self._process, self._channel
        self._process = self._channel = None
        if channel:
            channel.close()
        if process:
            process.kill()
            process.wait()

    def _started(self) -> socket.socket:
        if self._channel is not None:
            return self._channel
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        line = [sys.executable, "-m", _MODULE, str(theirs.fileno())]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    line,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=environment,
                    pass_fds=[theirs.fileno()],
                )
            except OSError as error:
                ours.close()
                raise MachineError(f"no process could be started to decode an image: {error}") from error
        self._channel = ours
        return ours

    def _broken(self, kind: _Kind, num_bytes: int) -> PocketVLMError:
        """Return why a child ended by itself, and forget it."""
        process = self._process
        code = process.wait() if process else None
        self.stop()
        if code == -signal.SIGKILL:
            return OutOfMemoryError(
                f"the process that decoded the {kind.noun} of {num_bytes} bytes was killed; try again later"
            )
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return ImageError(f"the {kind.noun} of {num_bytes} bytes broke its decoder ({name}). Save it again.")
        return MachineError(
            f"the process that decodes images ended with exit code {code}; what it said is in the server's log"
        )


class _Exchange:
    """Bytes to and from a child until a deadline.

    Args:
        channel: To the child.
        deadline_s: Monotonic time.
        is_unwanted: Set when nobody waits any more.
    """

    def __init__(self, channel: socket.socket, deadline_s: float, is_unwanted: threading.Event) -> None:
        self._channel = channel
        self._deadline_s = deadline_s
        self._is_unwanted = is_unwanted
        self._rest = b""
        channel.settimeout(_POLL_S)

    def send(self, data: bytes) -> None:
        """Send all.

        Raises:
            TimeoutError: The deadline has passed, or nobody waits any more.
            OSError: The child is gone.
        """
        rest = memoryview(data)
        while rest:
            rest = rest[self._patiently(lambda piece=rest[:_PIECE_BYTES]: self._channel.send(piece)) :]  # type: ignore[misc]

    def line(self) -> bytes:
        """Return what comes before the next end of a line."""
        while b"\n" not in self._rest:
            self._rest += self._piece(_PIECE_BYTES)
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def read(self, num_bytes: int) -> bytes:
        """Return so many bytes."""
        pieces, self._rest = [self._rest[:num_bytes]], self._rest[num_bytes:]
        left = num_bytes - len(pieces[0])
        while left:
            pieces.append(self._piece(min(left, _PIECE_BYTES)))
            left -= len(pieces[-1])
        return b"".join(pieces)

    def _piece(self, most_bytes: int) -> bytes:
        piece: bytes = self._patiently(lambda: self._channel.recv(most_bytes))
        if not piece:
            raise ConnectionError("the child closed its end")
        return piece

    def _patiently(self, act: Callable[[], Any]) -> Any:
        while True:
            if time.monotonic() > self._deadline_s or self._is_unwanted.is_set():
                raise TimeoutError
            try:
                return act()
            except TimeoutError:
                continue


def _error_of(head: dict[str, Any]) -> PocketVLMError:
    kind = _ERRORS.get(head["error"], MachineError)
    return kind(head["message"], head["param"]) if issubclass(kind, RequestError) else kind(head["message"])


def _cut_of(head: dict[str, Any], exchange: _Exchange) -> CutImage:
    images = [
        Image.frombytes("RGB", (width, height), exchange.read(3 * width * height)) for width, height in head["sizes"]
    ]
    return CutImage(bytes.fromhex(head["digest"]), head["width_px"], head["height_px"], tuple(images), head["is_cut"])


def _frames_of(head: dict[str, Any], exchange: _Exchange) -> CutFrames:
    pictures = tuple(_cut_of(picture, exchange) for picture in head["pictures"])
    return CutFrames(tuple(head["times_s"]), head["duration_s"], pictures)


def serve(stream: BufferedRWPair) -> None:
    """Answer requests until the parent closes its end: the child's side."""
    while head := stream.readline():
        request = json.loads(head)
        signal.setitimer(signal.ITIMER_REAL, 2 * request["timeout_s"])  # ends a child whose parent is gone
        for piece in _reply(request, [stream.read(num_bytes) for num_bytes in request["sizes"]]):
            stream.write(piece)
        stream.flush()
        signal.setitimer(signal.ITIMER_REAL, 0)


def _reply(request: dict[str, Any], files: list[bytes]) -> list[bytes]:
    spec, frames = _spec_of(request["spec"]), request.get("frames")
    try:
        if frames is None:
            cut = cut_image(spec, files[0])
            return [_line(_head(cut)), *_pixels(cut)]
        options, room = FrameOptions(**frames["options"]), FrameRoom.read(frames["room"])
        video = cut_frames(spec, files, options, room)
    except Exception as error:
        told = explained(error)
        return [_line({"error": type(told).__name__, "message": str(told), "param": getattr(told, "param", None)})]
    heads = [_head(picture) for picture in video.pictures]
    head = {"times_s": video.times_s, "duration_s": video.duration_s, "pictures": heads}
    return [_line(head), *(piece for picture in video.pictures for piece in _pixels(picture))]


def _line(head: dict[str, Any]) -> bytes:
    return json.dumps(head).encode() + b"\n"


def _head(cut: CutImage) -> dict[str, Any]:
    return {
        "digest": cut.digest.hex(),
        "width_px": cut.width_px,
        "height_px": cut.height_px,
        "is_cut": cut.is_cut,
        "sizes": [image.size for image in cut.images],
    }


def _pixels(cut: CutImage) -> Iterator[bytes]:
    return (image.tobytes() for image in cut.images)


_spec_of = lru_cache(maxsize=16)(ImageSpec.model_validate_json)


def _confine() -> None:
    """Give this process less than the server has: of memory, and of the right to stay where memory runs out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches a whole terminal; the server says when it is over
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(_KILLED_FIRST)
    with suppress(OSError):  # codecs write there what they find in damaged files
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def main() -> None:
    """Serve the socket whose descriptor is the command line's argument."""
    _confine()
    with socket.socket(fileno=int(sys.argv[1])) as channel, channel.makefile("rwb") as stream, suppress(OSError):
        serve(stream)


if __name__ == "__main__":
    main()
