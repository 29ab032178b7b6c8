"""Requests written down for debugging, where the operator asks for it: redacted, one line each, in bounded files."""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from bundle.errors import SettingsError
from serving.access.settings import RecordingSettings
from serving.api.record import RequestRecord
from serving.api.redaction import HIDDEN, redacted

logger = logging.getLogger(__name__)

PATTERN = "requests-*.jsonl"
_NAME = re.compile(r"requests-\d+T\d+-(\d+)-(\d+)\.jsonl")
"""Holds whose file it is, by the number of the process, and which of its files."""
_FILES = 8
"""Of which the oldest goes when all of them together are full."""
_MOST_WAITING_BYTES = 64 << 20
"""Of bodies that wait to be written; what would be more is not."""
_LEAST_KEY_BYTES = 16
"""Of a key that is looked for in what is written: a shorter one is none of ours, and may be a part of any word."""


@dataclass(frozen=True)
class _Ended:
    """A request that has ended, as it is handed to the writer."""

    facts: dict[str, Any]
    body: bytes
    key: bytes


class Recorder:
    """Writes requests into files of a folder, from a thread of its own.

    Args:
        settings: The folder, how many bytes, whether images.

    Raises:
        SettingsError: Nothing can be written there.
    """

    def __init__(self, settings: RecordingSettings) -> None:
        if settings.folder is None:
            raise SettingsError("recording.folder is not set")
        self._folder = settings.folder
        self._max_bytes = settings.max_bytes
        self._keeps_images = settings.images
        self._file: Path | None = None
        self._num_files = self._num_missed = 0
        self._waiting: queue.SimpleQueue[_Ended] = queue.SimpleQueue()
        self._num_waiting = self._num_waiting_bytes = 0
        self._changed = threading.Condition()
        try:
            self._append(b"")
        except OSError as error:
            raise SettingsError(f"requests cannot be recorded in {self._folder}: {error.strerror}") from error
        threading.Thread(target=self._write_all, name="recording", daemon=True).start()
        logger.warning("requests are recorded in %s, texts included", self._folder)

    def note(self, record: RequestRecord, method: str, path: str, body: bytes, key: bytes) -> None:
        """Have a request written that has ended; one that comes too fast is counted, and not written.

        Args:
            record: Of the request.
            method: Of HTTP.
            path: Of the route.
            body: As it was sent.
            key: That it came with; it is written nowhere.
        """
        facts = {
            "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "id": record.name,
            "key": record.key or None,
            "method": method,
            "path": path,
            "status": record.status,
            "model": record.model or None,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "total_s": round(time.monotonic() - record.arrived_s, 3),
        }
        with self._changed:
            if self._num_waiting_bytes + len(body) > _MOST_WAITING_BYTES:
                self._num_missed += 1
                return
            self._num_waiting_bytes += len(body)
            self._num_waiting += 1
        self._waiting.put(_Ended({name: each for name, each in facts.items() if each is not None}, body, key))

    def flush(self) -> None:
        """Wait until everything noted so far is written."""
        with self._changed:
            self._changed.wait_for(lambda: not self._num_waiting)

    def _write_all(self) -> None:
        while True:
            ended = self._waiting.get()
            try:
                self._append(self._line(ended))
            except Exception:  # whatever it is, the next request is written
                logger.exception("request %s could not be recorded", ended.facts["id"])
            finally:
                with self._changed:
                    self._num_waiting -= 1
                    self._num_waiting_bytes -= len(ended.body)
                    self._changed.notify_all()

    def _line(self, ended: _Ended) -> bytes:
        with self._changed:
            missed, self._num_missed = self._num_missed, 0
        facts = {**ended.facts, **({"missed_before": missed} if missed else {})}
        try:
            told = {"body": redacted(from_json(ended.body, allow_inf_nan=False), keeps_images=self._keeps_images)}
        except ValueError:
            told = {"unread": f"{len(ended.body)} bytes that are no JSON"}
        line = _encoded({**facts, **told}, ended.key)
        if len(line) > self._segment_bytes:
            return _encoded(
                {**facts, "unread": f"{len(line)} bytes, more than one file of the recording holds"}, ended.key
            )
        return line

    @property
    def _segment_bytes(self) -> int:
        return self._max_bytes // _FILES

    def _append(self, line: bytes) -> None:
        """Write a line into the newest file, which is a new one where that is full or was taken away."""
        if self._file is None or not self._has_room(self._file, len(line)):
            self._num_files += 1
            started = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
            self._file = self._folder / f"requests-{started}-{os.getpid()}-{self._num_files:06}.jsonl"
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        with open(os.open(self._file, flags, 0o600), "wb") as opened:
            opened.write(line)

    def _has_room(self, file: Path, num_bytes: int) -> bool:
        stat = _stat(file)
        return stat is not None and stat.st_size + num_bytes <= self._segment_bytes

    def _make_room(self) -> None:
        """Remove the oldest files, so that one more fits; none that another process writes into."""
        found = [(stat, file) for file in self._folder.glob(PATTERN) if (stat := _stat(file)) is not None]
        num_bytes = sum(stat.st_size for stat, _ in found)
        written = _written_by_others([file for _, file in found])
        for stat, file in sorted(found, key=lambda each: each[0].st_mtime_ns):
            if num_bytes + self._segment_bytes <= self._max_bytes:
                return
            if file not in written:
                num_bytes -= stat.st_size
                file.unlink(missing_ok=True)


def _stat(file: Path) -> os.stat_result | None:
    """Return what the system knows of a file; None where there is none."""
    try:
        return file.stat()
    except FileNotFoundError:
        return None


def _written_by_others(files: list[Path]) -> set[Path]:
    """Return the last file of each other process that lives."""
    last: dict[int, tuple[int, Path]] = {}
    for file in files:
        if name := _NAME.fullmatch(file.name):
            process, number = int(name[1]), int(name[2])
            last[process] = max(last.get(process, (0, file)), (number, file))
    return {file for process, (_, file) in last.items() if process != os.getpid() and _lives(process)}


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # asks, and ends nothing
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _encoded(value: dict[str, Any], key: bytes) -> bytes:
    """Return a line of JSON in which the request's own key is nowhere."""
    line = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return (line.replace(key, HIDDEN.encode()) if len(key) >= _LEAST_KEY_BYTES else line) + b"\n"
