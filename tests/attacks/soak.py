"""A server under every kind of client for a long time: each request ends once, and nothing grows.

    python tests/attacks/soak.py --minutes 30 [--output .demo/soak]

Locust's users load it with chats, embeddings and classifications; beside them come those of crowd.py, one of which
switches faults on. Prints a table, and writes samples.json and soak.png.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from crowd import Crowd
from flatness import NUM_BLOCKS, Slope, slope_of
from victim import ROOT, Figures, Victim, known, running_victim, serve_command

from loadtests.plan import LoadPlan
from loadtests.run import measure
from loadtests.samples import read_samples
from pages.drawing import Drawing, Line
from pages.marks import OUTLINES
from pages.palette import SERIES
from pages.plot import Axis, Entry, Plot
from pages.png import write_png

WARM_UP_SHARE = 0.3
"""Of the run: arenas, caches and connections fill, and are not judged."""
MAX_SURE_GROWTH_MB = 10.0
"""That memory may have grown by for sure after the warm-up."""
MAX_MORE_DESCRIPTORS, MAX_MORE_THREADS = 4, 2
CACHE_BYTES = 2 << 20
"""Of image features: filled within the warm-up, so that what grows afterwards is no cache."""
_SAMPLE_EVERY_S = 0.5
_SETTLE_S = 30.0
_USERS = 3


@dataclass
class Soaked:
    """What a soak showed.

    Attributes:
        endings: Of requests, by kind of client.
        lost: The first requests that were lost or hung.
        times_s: Of the samples.
        figures: At those times.
        before: Idle, before the load.
        after: Idle, after it.
        num_faults: That were switched on.
        faults: What went beyond its limit.
    """

    endings: dict[str, Counter[str]]
    lost: list[str]
    times_s: list[float]
    figures: list[Figures]
    before: Figures
    after: Figures
    num_faults: int
    faults: list[str] = field(default_factory=list)

    @property
    def warm(self) -> slice:
        """Samples after the warm-up."""
        return slice(int(len(self.times_s) * WARM_UP_SHARE), None)

    @property
    def memory_slope(self) -> Slope:
        """Megabytes a minute of the server itself, after the warm-up; its helpers come and go with costly images."""
        return slope_of(self.times_s[self.warm], [each.memory_mb for each in self.figures[self.warm]])


class Sampler:
    """Samples a server's figures in a thread until `stop`."""

    def __init__(self, victim: Victim) -> None:
        self._victim = victim
        self._is_over = threading.Event()
        self.times_s: list[float] = []
        self.figures: list[Figures] = []
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._is_over.set()
        self._thread.join()

    def _sample(self) -> None:
        started_s = time.monotonic()
        while not self._is_over.wait(_SAMPLE_EVERY_S) and self._victim.is_running:
            self.figures.append(self._victim.figures())
            self.times_s.append(time.monotonic() - started_s)


def soak(minutes: float, output: Path, bundles: list[Path], **models: str) -> Soaked:
    """Load a server for so long and judge it; Locust writes into `output`.

    Args:
        minutes: Of load.
        output: Made where it is absent.
        bundles: Served.
        models: Their ids, as fields of `Victim`.
    """
    output.mkdir(parents=True, exist_ok=True)
    fault_file = output / "fault"
    fault_file.write_text("")
    os.environ["FAULT_FILE"] = str(fault_file)
    settings = known({"log_level": "warning", "api.stalled_client_s": 5, "engine.image_cache_bytes": CACHE_BYTES})
    command = serve_command(bundles, "faulty_server.py")
    with running_victim(command, output / "server.log", settings=settings, **models) as victim:
        before, sampler, crowd = victim.figures(), Sampler(victim), Crowd(victim, fault_file)
        crowd.start()
        plan = LoadPlan(users=_USERS, mix="chat=1,embed=1,classify=1", duration_s=max(60 * minutes - 2, 5), image_px=96)
        measure(f"http://127.0.0.1:{victim.port}", plan, (), output)
        crowd.stop()
        sampler.stop()
        is_settled = victim.is_running and victim.wait_until(victim.is_idle, _SETTLE_S) is not None
        time.sleep(2)
        after = victim.figures() if victim.is_running else before
        endings = {**crowd.endings, "Locust's users": locust_endings(output / "requests.jsonl")}
        soaked = Soaked(endings, crowd.lost, sampler.times_s, sampler.figures, before, after, crowd.num_faults)
        judge(soaked, victim, is_settled)
    return soaked


def locust_endings(samples: Path) -> Counter[str]:
    """Return how Locust's requests ended, by what it noted: a status or an error event is the server's own word."""
    endings: Counter[str] = Counter()
    for sample in read_samples(samples):
        if sample.error is None:
            endings["answered"] += 1
        elif sample.error[:3].isdigit() or sample.error.startswith("in the stream: "):
            endings["refused"] += 1
        else:
            endings["hung" if "Timeout" in sample.error else "lost"] += 1
    return endings


def judge(soaked: Soaked, victim: Victim, is_settled: bool) -> None:
    """Note what went beyond its limit."""
    total = sum(soaked.endings.values(), Counter())
    steady = soaked.figures[soaked.warm]
    early, late = steady[: len(steady) // 4], steady[-(len(steady) // 4) :]
    checks = {
        "the server ended": victim.is_running,
        f"{total['lost']} requests were lost": not total["lost"],
        f"{total['hung']} requests hung": not total["hung"],
        "nothing was answered": total["answered"] > 0,
        "no fault was switched on": soaked.num_faults > 0,
        "requests ran or waited after the load": is_settled,
        "it is not ready after the load": victim.is_running and victim.status("/health/ready") == 200,
    }
    soaked.faults += [fault for fault, is_well in checks.items() if not is_well]
    growth_mb = soaked.memory_slope.sure_growth
    if growth_mb > MAX_SURE_GROWTH_MB:
        soaked.faults.append(f"memory grew by {growth_mb:.0f} MB for sure after the warm-up")
    for name, allowed in (("descriptors", MAX_MORE_DESCRIPTORS), ("threads", MAX_MORE_THREADS)):
        first, last = (median(getattr(each, name) for each in part) for part in (early, late))
        before, after = getattr(soaked.before, name), getattr(soaked.after, name)
        if last > first + allowed:
            soaked.faults.append(f"{name} under load: {first:g} -> {last:g}")
        if name == "descriptors" and after > before + allowed:
            soaked.faults.append(f"{name} at rest: {before} -> {after}")


def lines(soaked: Soaked) -> list[str]:
    """Return the table."""
    told = [f"{'client':22}{'answered':>10}{'refused':>10}{'lost':>8}{'hung':>8}"]
    for client, endings in sorted(soaked.endings.items()):
        counts = [endings[ending] for ending in ("answered", "refused", "lost", "hung")]
        told.append(f"{client:22}{counts[0]:>10}{counts[1]:>10}{counts[2]:>8}{counts[3]:>8}")
    peak_mb = max(each.memory_mb for each in soaked.figures)
    helpers_mb = max(each.helpers_mb for each in soaked.figures)
    told += [
        f"faults switched on: {soaked.num_faults}",
        f"memory, MB: {soaked.before.memory_mb:.0f} before, {peak_mb:.0f} at most, {soaked.after.memory_mb:.0f} after; "
        f"after the warm-up {soaked.memory_slope}",
        f"memory of helpers, MB: {helpers_mb:.0f} at most, {soaked.after.helpers_mb:.0f} after",
        f"descriptors: {soaked.before.descriptors} before, {soaked.after.descriptors} after",
        f"threads: {soaked.before.threads} before, {soaked.after.threads} after",
    ]
    return [*told, *(f"FAILS: {fault}" for fault in soaked.faults), *(f"  {each}" for each in soaked.lost[:5])]


def picture(soaked: Soaked) -> Drawing:
    """Return memory, descriptors and threads over time."""
    minutes = [time_s / 60 for time_s in soaked.times_s]
    curves = {
        "memory, MB": [each.memory_mb for each in soaked.figures],
        "helpers' memory, MB": [each.helpers_mb for each in soaked.figures],
        "descriptors": [float(each.descriptors) for each in soaked.figures],
        "threads": [float(each.threads) for each in soaked.figures],
    }
    legend = tuple(Entry(name, SERIES[place], OUTLINES[place]) for place, name in enumerate(curves))
    y = Axis.from_zero("", max(max(values) for values in curves.values()))
    plot = Plot(Axis.from_zero("minutes", minutes[-1]), y, 220.0, legend)
    drawn = [
        Line([plot.at(*each) for each in zip(minutes, values, strict=True)], SERIES[place], 1.4)
        for place, values in enumerate(curves.values())
    ]
    return plot.drawing("memory, descriptors and threads of the server over the soak", drawn)


def write(soaked: Soaked, output: Path) -> None:
    """Write the samples and the picture."""
    samples = [{"time_s": at, **asdict(each)} for at, each in zip(soaked.times_s, soaked.figures, strict=True)]
    (output / "samples.json").write_text(json.dumps(samples) + "\n", encoding="utf-8")
    write_png(picture(soaked), output / "soak.png")


def main() -> int:
    """Soak the shipped models, print the table, write the picture; 1 where anything went beyond its limit."""
    from attack_bundles import attacked_bundles

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--output", type=Path, default=ROOT / ".demo" / "soak")
    options = parser.parse_args()
    shortest = 2 * NUM_BLOCKS * _SAMPLE_EVERY_S / (1 - WARM_UP_SHARE) / 60
    if options.minutes < 2 * shortest:
        parser.error(f"--minutes {options.minutes:g} is too short to tell a slope; at least {2 * shortest:.1f}")
    soaked = soak(options.minutes, options.output, attacked_bundles())
    print("\n".join(lines(soaked)))
    write(soaked, options.output)
    print(f"picture: {options.output / 'soak.png'}")
    return 1 if soaked.faults else 0


if __name__ == "__main__":
    sys.exit(main())
