"""How soon a server is ready, and what it holds then: `python -m loadtests.start BUNDLE ...`.

Each start is `pocketvlm serve` in a process of its own, after one that warms the system's file cache. Beside the time
until `/health/ready` turns green stands the processor time until then, which other work on the machine does not
lengthen. Resident memory counts mapped weights as far as they were read; what is anonymous is the process's alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from bundle.errors import PocketVLMError
from bundle.manifest import Manifest
from serving.process import running_server

_MIB = 1 << 20


@dataclass(frozen=True)
class Start:
    """One start of a server.

    Attributes:
        ready_s: From the command to `/health/ready`.
        processor_s: That the process took until then, all threads together.
        resident_bytes: In memory then.
        anonymous_bytes: Of those, what is no file's.
        weight_bytes: Of all bundles.
    """

    ready_s: float
    processor_s: float
    resident_bytes: int
    anonymous_bytes: int
    weight_bytes: int

    @property
    def beside_weights_bytes(self) -> int:
        """What is resident beside the weights, had all of them been read."""
        return self.resident_bytes - self.weight_bytes


def measured_start(bundles: Sequence[Path], flags: Sequence[str]) -> Start:
    """Start a server once, and return what that took.

    Raises:
        MachineError: It did not start.
    """
    weight_bytes = sum(_weight_bytes(bundle) for bundle in bundles)
    with tempfile.TemporaryDirectory() as folder:
        began_s = time.monotonic()
        with running_server("serve", [*map(str, bundles), *flags], Path(folder) / "log") as server:
            ready_s, processor_s = time.monotonic() - began_s, _processor_s(server.pid)
            held = _held_bytes(server.pid)
    return Start(ready_s, processor_s, held["Rss"], held["Anonymous"], weight_bytes)


def _weight_bytes(bundle: Path) -> int:
    return Manifest.model_validate_json((bundle / "manifest.json").read_bytes()).weight_bytes


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])  # utime and stime of proc(5), counted behind the name
    return (user + system) / os.sysconf("SC_CLK_TCK")


def _held_bytes(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return {name: int(value.split()[0]) << 10 for name, _, value in (line.partition(":") for line in lines)}


def told(starts: Sequence[Start]) -> str:
    """Return the medians of some starts in a line."""
    typical = {name: median(getattr(start, name) for start in starts) for name in asdict(starts[0])}
    beside = median(start.beside_weights_bytes for start in starts)
    return (
        f"{len(starts)} starts: ready in {typical['ready_s']:.1f} s ({typical['processor_s']:.1f} s of a processor), "
        f"{typical['resident_bytes'] / _MIB:.0f} MiB resident, {beside / _MIB:.0f} MiB beside "
        f"{typical['weight_bytes'] / _MIB:.0f} MiB of weights; {typical['anonymous_bytes'] / _MIB:.0f} MiB anonymous"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return an exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.start", description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--runs", type=int, default=3, help="starts that count, behind one that warms (default: 3)")
    parser.add_argument("--flag", action="append", default=[], help="handed to serve, such as --flag=--threads=1")
    asked = parser.parse_args(arguments)
    try:
        measured_start(asked.bundles, asked.flag)
        print(told([measured_start(asked.bundles, asked.flag) for _ in range(max(asked.runs, 1))]))
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
