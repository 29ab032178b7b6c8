"""How near a decode step comes to what memory can give: `python -m loadtests.bandwidth BUNDLE`.

A step reads all weights of the decoder for single tokens once, and every cached row of every sequence. What memory
gives is measured in turns with the steps, by threads that read arrays larger than any cache.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np

from bundle.directory import open_bundle
from bundle.errors import PocketVLMError
from loadtests.contestants import Bench, Station, StationBench

_ARRAY_BYTES = 256 << 20
"""That each thread reads: larger than any processor's last cache."""
_STEPS = 8


def open_memory(threads: int) -> Callable[[], float]:
    """Return what tells how many bytes a second so many threads read."""
    arrays = [np.ones(_ARRAY_BYTES // 4, np.float32) for _ in range(threads)]
    pool = ThreadPoolExecutor(threads)

    def read() -> float:
        started_s = time.perf_counter()
        list(pool.map(_read, arrays))
        return threads * _ARRAY_BYTES / (time.perf_counter() - started_s)

    return read


def _read(array: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
    for part in np.split(array, 64):  # few enough numbers that the sum stays on this thread
        np.dot(part, part)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what a step reads, how long it takes, and the share of memory's bandwidth that this is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cached", type=int, default=512, help="rows of each sequence in the cache")
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args(arguments)
    try:
        report(options.bundle, options.threads, options.cached, options.sequences, options.turns)
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def report(bundles: list[Path], threads: int, cached: int, sequences: int, turns: int) -> None:
    """Print a line for each bundle.

    Raises:
        BundleError: One cannot be opened.
        SettingsError: One has no decoder, or too short a context.
    """
    station, memory = Station("decode", sequences, cached), open_memory(threads)
    print(f"{sequences} sequences with {cached} rows cached, {threads} threads, medians of {turns} turns")
    for path in bundles:
        bench = StationBench(Bench(path, (station,), threads, _STEPS))
        row_bytes = open_bundle(path, verify=False, allow_ungated=True).manifest.state_bytes_per_token
        step_bytes = bench.variant.step_bytes + sequences * cached * row_bytes
        given, took_ms = [], []
        bench.run(station)
        for _ in range(turns):
            given.append(memory())
            took_ms.append(bench.run(station).wall_ms)
        rate, step_ms = median(given), median(took_ms)
        share = step_bytes / (step_ms / 1e3) / rate
        print(
            f"{path.name}: a step reads {step_bytes} bytes in {step_ms:.2f} ms, {step_bytes / step_ms / 1e6:.1f} GB/s; "
            f"memory gives {rate / 1e9:.1f} GB/s: {share:.0%}"
        )


if __name__ == "__main__":
    sys.exit(main())
