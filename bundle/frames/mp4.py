"""An MP4 as a video, decoded by FFmpeg (the package `av`, extra `video`) once its own tables have been judged.

Nothing but the one file is opened: the demuxer is named, references to other files are off in it, and there is no
network. Codecs are those of a short list, with the frame's size bounded in the decoder as well, since the coded stream
may say another one than the file. One thread decodes; whoever calls this does it in a process that can be stopped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from operator import itemgetter
from typing import Any

from PIL import Image

from bundle.containers.mp4 import mp4_track
from bundle.decode import DECODER_BYTES_PER_PIXEL, has_memory
from bundle.errors import ImageError, OutOfMemoryError
from bundle.frames.clip import Clip
from bundle.frames.limits import VideoLimits, check_video

CODECS = ("h264", "hevc", "av1", "libdav1d", "vp9", "mpeg4")
_TURNS = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}
"""Degrees clockwise; Pillow turns the other way."""


class Mp4Frames(Clip):
    """The first video track of a file.

    Args:
        data: The file.
        limits: Of the whole.

    Raises:
        ImageError: It is damaged, cut short, over the limits, of another codec, or has more frames than time.
        ModuleNotFoundError: The package is not installed.
    """

    def __init__(self, data: bytes, limits: VideoLimits) -> None:
        track = mp4_track(data)
        check_video(track.width_px, track.height_px, track.num_frames, track.duration_s, limits)
        self._num_bytes = len(data)
        self._limits = limits
        self._turn = _TURNS.get(track.turn_degrees)
        with self._decoding("the video"):
            self._open(data, track.codec)
            packets = [each for each in self._file.demux(self._stream) if each.pts is not None]
        if len(packets) != track.num_frames or not any(each.is_keyframe for each in packets):
            raise ImageError(
                f"the video is cut short: its tables tell of {track.num_frames} frames, and {len(packets)} are there "
                f"({len(data)} bytes). Save it again."
            )
        self._pts = sorted(each.pts for each in packets)
        self._keys = sorted(
            (each.pts, each.pts if each.dts is None else each.dts) for each in packets if each.is_keyframe
        )
        self._time(packets)
        check_video(track.width_px, track.height_px, track.num_frames, self.duration_s, limits)
        self._frames: Iterator[Any] = iter(())
        self._at = self._pts[-1] + 1  # where decoding stands: behind everything, so that it begins with a seek

    def _open(self, data: bytes, codec: str) -> None:
        import av

        options = {"max_pixels": str(self._limits.max_pixels)}
        self._file = av.open(
            BytesIO(data),
            format="mp4",
            options={"ignore_editlist": "1"},
            stream_options=[options],
            metadata_errors="ignore",
        )
        self._stream = self._file.streams.video[0]
        context = self._stream.codec_context
        if context is None or context.name not in CODECS:
            name = "none" if context is None else context.name
            raise ImageError(
                f"the video's codec is {codec!r} ({name}); read are {', '.join(CODECS)}. Save it as H.264."
            )
        self._check_size(context)
        context.options = options
        context.thread_count = 1

    def _time(self, packets: Sequence[Any]) -> None:
        tick_s = float(self._stream.time_base or 0)
        first, last = self._pts[0], max(packets, key=lambda each: each.pts)
        self.times_s = tuple((pts - first) * tick_s for pts in self._pts)
        self.duration_s = self.times_s[-1] + (last.duration or 0) * tick_s
        if len(self._pts) > 1 and self.times_s[-1] <= 0:
            raise ImageError(f"the video's {len(self._pts)} frames are all of one moment: it lasts 0 s. Save it again.")

    def decoded(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """Yield frames, decoding from the last key frame before each, or from the frame before where that is nearer."""
        for index in indices:
            with self._decoding(f"frame {index} of the video"):
                frame = self._frame(self._pts[index])
                self._check_size(frame)
                picture: Image.Image = frame.to_image()
                del frame
            yield picture if self._turn is None else picture.transpose(self._turn)
            del picture

    def _frame(self, pts: int) -> Any:
        shown, decoded = self._keys[max(bisect_right(self._keys, pts, key=itemgetter(0)) - 1, 0)]
        if not shown <= self._at < pts:
            self._file.seek(decoded, stream=self._stream)  # which looks for the order of decoding
            self._frames = self._file.decode(self._stream)
        for frame in self._frames:  # one iterator: the decoder gives several frames for its last packet
            if frame.pts is None or frame.pts < pts:
                continue
            self._at = frame.pts
            if frame.pts > pts or frame.is_corrupt:
                break
            return frame
        raise ImageError(
            f"the video's frame at {(pts - self._pts[0]) * float(self._stream.time_base or 0):g} s is damaged. "
            "Save it again."
        )

    def _check_size(self, coded: Any) -> None:
        """Judge a frame, or what its codec says of it."""
        if coded.width * coded.height > self._limits.max_pixels:
            raise ImageError(
                f"a frame of the video is {coded.width}x{coded.height} pixels; at most {self._limits.max_pixels} are "
                "decoded. Scale it down."
            )

    @contextmanager
    def _decoding(self, what: str) -> Iterator[None]:
        """Turn FFmpeg's errors into ours."""
        from av.error import FFmpegError

        try:
            yield
        except MemoryError as error:
            if not has_memory(self._limits.max_pixels * DECODER_BYTES_PER_PIXEL):
                raise OutOfMemoryError(f"{what} was not decoded: memory ran out. Try again later.") from error
            raise self._damaged(what, "it asks for more memory than any video needs") from error
        except (FFmpegError, ValueError, EOFError, IndexError) as error:
            raise self._damaged(what, str(error)) from error

    def _damaged(self, what: str, problem: str) -> ImageError:
        return ImageError(f"{what} is damaged or cut short ({self._num_bytes} bytes): {problem}. Save it again.")
