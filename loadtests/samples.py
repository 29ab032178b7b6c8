"""One record per request of a load test, and the files that carry them out of the Locust process.

Locust's own statistics round each latency to whole milliseconds; these records keep what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["chat", "embed_text", "embed_image", "classify"]
KINDS: tuple[Kind, ...] = ("chat", "embed_text", "embed_image", "classify")


@dataclass(frozen=True)
class RequestSample:
    """What one request took, measured by the client with `time.perf_counter`.

    Attributes:
        kind: What was asked.
        started_s: When the request was sent: on the client's own clock in the Locust process, since the test's start
            in a file.
        total_ms: Until the last byte of the answer, or until the failure.
        ttft_ms: Chat: until the first event with text; None where no text came.
        gaps_ms: Chat: between one event with text and the next; events that arrive together have gaps near 0.
        output_tokens: Chat: from the usage event, or the events with text where the server sends no usage.
        bytes_read: Of the answer's body.
        error: Why it failed; None where it did not.
    """

    kind: Kind
    started_s: float
    total_ms: float
    ttft_ms: float | None = None
    gaps_ms: tuple[float, ...] = ()
    output_tokens: int = 0
    bytes_read: int = 0
    error: str | None = None

    @property
    def ended_s(self) -> float:
        """When the answer was complete, on the clock of `started_s`."""
        return self.started_s + self.total_ms / 1e3


@dataclass(frozen=True)
class RunRecord:
    """What the Locust process says of the run as a whole.

    Attributes:
        models: Served model asked by each user kind that ran ("chat", "embed", "classify").
        users: Users of each kind at the end of spawning.
        started_at: Wall clock, ISO 8601 with zone.
        stopped_s: When the run was told to end, since its start; early where it met its most requests.
        client_cpu_share: Share of one core that the load generator used; near 1 it measures itself.
        distinct_images: Images in the pool.
        images_sent: Image parts sent; above `distinct_images`, some were repeats that a server may have cached.
        versions: Of Locust and Python.
    """

    models: dict[str, str]
    users: dict[str, int]
    started_at: str
    stopped_s: float
    client_cpu_share: float
    distinct_images: int
    images_sent: int
    versions: dict[str, str]


def sample_line(sample: RequestSample) -> str:
    """Return a sample as one line of JSON, newline included."""
    return json.dumps(asdict(sample), ensure_ascii=False) + "\n"


def read_samples(path: Path) -> Iterator[RequestSample]:
    """Yield the samples of a file, in the order in which their requests ended."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            fields = json.loads(line)
            yield RequestSample(**{**fields, "gaps_ms": tuple(fields["gaps_ms"])})


def write_record(path: Path, record: RunRecord) -> None:
    """Write the run's record as JSON."""
    path.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def read_record(path: Path) -> RunRecord:
    """Return the record that `write_record` wrote."""
    return RunRecord(**json.loads(path.read_text(encoding="utf-8")))
