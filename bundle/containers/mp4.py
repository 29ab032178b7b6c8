"""MP4, MOV and their kin (ISO/IEC 14496-12): what a file says of its first video track, read without a decoder.

Boxes within boxes are walked as far as the track's sizes, times and number of samples. Of a fragmented file, whose
samples stand in fragments, those are counted as well.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from bundle.containers.picture import check_pieces
from bundle.errors import ImageError

BRAND = b"ftyp"
"""Stands behind the length of a file's first box."""
_TRACK_IN = (b"mdia", b"minf", b"stbl")
_TURNS = {(0, 1, -1, 0): 90, (-1, 0, 0, -1): 180, (0, -1, 1, 0): 270}
"""Upper left of a track's matrix -> degrees clockwise (14496-12, 6.2.2)."""
_ONE = 1 << 16
_SAMPLE_FIELDS = 0x100, 0x200, 0x400, 0x800
"""Flags of a run: its samples tell each of their duration, size, flags, offset (8.8.8)."""


@dataclass(frozen=True)
class Track:
    """A video track that was not decoded.

    Attributes:
        codec: Four letters, as the file writes them.
        width_px: Before `turn_degrees` is applied.
        height_px: Before `turn_degrees` is applied.
        num_frames: Samples.
        duration_s: Of all samples; 0 where the file leaves them to its fragments.
        turn_degrees: Clockwise; 0, 90, 180 or 270.
    """

    codec: str
    width_px: int
    height_px: int
    num_frames: int
    duration_s: float
    turn_degrees: int


@dataclass(frozen=True)
class _Box:
    """Part of a file: its kind, and where its content begins and ends."""

    kind: bytes
    start: int
    end: int


def is_mp4(data: bytes) -> bool:
    """Return whether a file begins as one of these does."""
    return data[4:8] == BRAND


def mp4_track(data: bytes) -> Track:
    """Return the first video track of a file.

    Raises:
        ImageError: There is none, its boxes are damaged or cut short, or there are too many of them.
    """
    try:
        return _track(_Boxes(data))
    except (struct.error, IndexError) as error:
        raise _damaged(data, f"its tables are cut short ({error})") from error


class _Boxes:
    """A file's boxes, counted as they are walked."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._num_found = 0

    def inside(self, start: int, end: int) -> Iterator[_Box]:
        """Yield the boxes of a stretch of the file."""
        at = start
        while at + 8 <= end:
            self._num_found += 1
            check_pieces(self._num_found, "MP4 boxes")
            length, kind = struct.unpack_from(">I4s", self.data, at)
            content = at + 8
            if length == 1:
                (length,) = struct.unpack_from(">Q", self.data, content)
                content += 8
            elif length == 0:
                length = end - at
            if length < content - at:
                raise _damaged(self.data, f"a box {kind!r} has the length {length}")
            yield _Box(kind, content, min(at + length, end))
            if at + length > end:
                raise _damaged(self.data, f"a box {kind!r} of {length} bytes is cut short")
            at += length

    def child(self, box: _Box, *path: bytes) -> _Box | None:
        """Return the first box down a path of kinds."""
        for kind in path:
            found = next((each for each in self.inside(box.start, box.end) if each.kind == kind), None)
            if found is None:
                return None
            box = found
        return box

    def wanted(self, box: _Box, *path: bytes) -> _Box:
        """Return the first box down a path of kinds, which must be there."""
        found = self.child(box, *path)
        if found is None:
            raise _damaged(self.data, f"it has no {'/'.join(kind.decode() for kind in path)}")
        return found

    def numbers(self, form: str, box: _Box, offset: int) -> tuple[int, ...]:
        """Return big-endian numbers in a box."""
        size = struct.calcsize(">" + form)
        if box.start + offset + size > box.end:
            raise _damaged(self.data, f"a box {box.kind!r} is too short")
        return struct.unpack_from(">" + form, self.data, box.start + offset)


def _damaged(data: bytes, problem: str) -> ImageError:
    return ImageError(f"the MP4 is damaged or cut short ({len(data)} bytes): {problem}. Save it again.")


def _track(boxes: _Boxes) -> Track:
    whole = _Box(b"", 0, len(boxes.data))
    movie = boxes.wanted(whole, b"moov")
    for track in boxes.inside(movie.start, movie.end):
        if track.kind == b"trak" and _is_video(boxes, track):
            return _described(boxes, whole, movie, track)
    raise _damaged(boxes.data, "it has no video track")


def _is_video(boxes: _Boxes, track: _Box) -> bool:
    handler = boxes.child(track, b"mdia", b"hdlr")
    return handler is not None and boxes.data[handler.start + 8 : handler.start + 12] == b"vide"


def _described(boxes: _Boxes, whole: _Box, movie: _Box, track: _Box) -> Track:
    tables = boxes.wanted(track, *_TRACK_IN)
    entry = boxes.wanted(tables, b"stsd")
    (codec,) = struct.unpack_from(">4s", boxes.data, entry.start + 12)
    width, height = boxes.numbers("HH", entry, 8 + 8 + 24)
    is_fragmented = boxes.child(movie, b"mvex") is not None
    num_frames = _num_samples(boxes, tables)
    if is_fragmented:
        num_frames += _num_in_fragments(boxes, whole, _track_id(boxes, track))
    if num_frames == 0:
        raise _damaged(boxes.data, "its video track has no frames")
    ticks = _num_ticks(boxes, tables)
    if not is_fragmented and num_frames > 1 and ticks == 0:
        raise _damaged(boxes.data, f"its {num_frames} frames are all of one moment")
    duration_s = ticks / _ticks_per_s(boxes, track)
    return Track(codec.decode("latin-1"), width, height, num_frames, duration_s, _turn(boxes, track))


def _num_samples(boxes: _Boxes, tables: _Box) -> int:
    """Return how many samples a track's table of sizes holds."""
    sizes = boxes.child(tables, b"stsz")
    if sizes is None:
        return int(boxes.numbers("I", boxes.wanted(tables, b"stz2"), 8)[0])
    size_of_all, count = boxes.numbers("II", sizes, 4)
    if size_of_all == 0 and count * 4 > sizes.end - sizes.start:
        raise _damaged(boxes.data, f"it promises {count} frames, and its table of sizes ends before")
    return int(count)


def _num_in_fragments(boxes: _Boxes, whole: _Box, track_id: int) -> int:
    """Return how many samples of a track stand in fragments."""
    count = 0
    for fragment in boxes.inside(whole.start, whole.end):
        if fragment.kind != b"moof":
            continue
        for run_of in boxes.inside(fragment.start, fragment.end):
            if run_of.kind == b"traf" and boxes.numbers("I", boxes.wanted(run_of, b"tfhd"), 4)[0] == track_id:
                runs = (each for each in boxes.inside(run_of.start, run_of.end) if each.kind == b"trun")
                count += sum(_num_in_run(boxes, each) for each in runs)
    return count


def _num_in_run(boxes: _Boxes, run: _Box) -> int:
    (flags, count) = boxes.numbers("II", run, 0)
    num_fields = sum(bool(flags & field) for field in _SAMPLE_FIELDS)
    if count * num_fields * 4 > run.end - run.start:
        raise _damaged(boxes.data, f"a run promises {count} frames and ends before")
    return count


def _track_id(boxes: _Boxes, track: _Box) -> int:
    header = boxes.wanted(track, b"tkhd")
    is_long = boxes.data[header.start] == 1
    return boxes.numbers("I", header, 20 if is_long else 12)[0]


def _ticks_per_s(boxes: _Boxes, track: _Box) -> int:
    header = boxes.wanted(track, b"mdia", b"mdhd")
    is_long = boxes.data[header.start] == 1
    (scale,) = boxes.numbers("I", header, 20 if is_long else 12)
    if scale == 0:
        raise _damaged(boxes.data, "its video track has 0 ticks a second")
    return int(scale)


def _num_ticks(boxes: _Boxes, tables: _Box) -> int:
    """Return how long all samples last: a table of runs, each so many samples of one length."""
    times = boxes.wanted(tables, b"stts")
    (num_runs,) = boxes.numbers("I", times, 4)
    check_pieces(num_runs, "runs of MP4 frames")
    runs = boxes.numbers("II" * num_runs, times, 8)
    return sum(count * length for count, length in zip(runs[::2], runs[1::2], strict=True))


def _turn(boxes: _Boxes, track: _Box) -> int:
    header = boxes.wanted(track, b"tkhd")
    is_long = boxes.data[header.start] == 1
    a, b, _, c, d = boxes.numbers("iiiii", header, 52 if is_long else 40)
    corner = tuple(round(each / _ONE) for each in (a, b, c, d))
    return _TURNS.get((corner[0], corner[1], corner[2], corner[3]), 0)
