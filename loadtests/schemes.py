"""The comparison of weight schemes on this machine: `python -m loadtests.schemes BUNDLE BUNDLE ...`.

Every bundle is open in a process of its own; they take turns at each station (A B C A B C ...), so that whatever slows
the machine slows all of them, and what counts is the median of the ratios within a turn. Random weights of the real
sizes do: speed and bytes do not depend on what the weights say.

    python tests/checkpoints.py CK --preset llama-1.1b --one-tile
    pocketvlm export CK -o llama
    python -m loadtests.schemes llama --weights int8 int4 ternary
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from bundle.directory import MANIFEST
from bundle.errors import PocketVLMError, QuantizationError, SettingsError
from bundle.machine import Machine, this_machine
from loadtests.contestants import Bench, Contestant, Reading, Station, Variant
from loadtests.wording import counted, number
from runtime.turns import Quartiles, Turns

_PACKAGES = ("pocketvlm", "onnxruntime", "onnxruntime-gpu", "numpy")


@dataclass(frozen=True)
class Plan:
    """What is compared, and how often.

    Attributes:
        prompt_tokens: Of a prefill into an empty cache.
        batch_sizes: Of decode steps.
        cached_tokens: Before each decode step.
        steps: Decode steps in a turn.
        rounds: Turns of each bundle at each station.
        threads: Inside one operator; 0 means one per physical core.
    """

    prompt_tokens: int = 512
    batch_sizes: tuple[int, ...] = (1, 8)
    cached_tokens: int = 128
    steps: int = 8
    rounds: int = 10
    threads: int = 0

    def __post_init__(self) -> None:
        """Check every bound.

        Raises:
            SettingsError: A value is out of its range.
        """
        bounds = {"prompt_tokens": 2, "cached_tokens": 1, "steps": 1, "rounds": 3, "threads": 0}
        for name, least in bounds.items():
            if getattr(self, name) < least:
                raise SettingsError(f"{name} {getattr(self, name)} is out of range: at least {least}")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise SettingsError(f"batch_sizes {self.batch_sizes} must be numbers from 1")

    @property
    def stations(self) -> tuple[Station, ...]:
        """Return the stations in the order of a turn."""
        decodes = (Station("decode", size, self.cached_tokens) for size in self.batch_sizes)
        return (Station("vision", 1), Station("prefill", self.prompt_tokens), *decodes)


@dataclass(frozen=True)
class Line:
    """One bundle at one station.

    Attributes:
        variant: The bundle's name.
        station: What ran.
        wall_ms: Median over the turns.
        processor_ms: Median over the turns.
        per_second: Items a second at the median of the wall clock.
        unit: Of the items.
        wall_ratio: How many times as fast as the first bundle.
        processor_ratio: The same by processor time.
    """

    variant: str
    station: str
    wall_ms: float
    processor_ms: float
    per_second: float
    unit: str
    wall_ratio: Quartiles
    processor_ratio: Quartiles


@dataclass(frozen=True)
class Target:
    """A speed that one scheme should have over another at a kind of station, one sequence at a time."""

    kind: str
    faster: str
    slower: tuple[str, ...]
    least: float


TARGETS = (
    Target("decode", "int4", ("int8", "int8-weight-only"), 1.3),
    Target("decode", "ternary", ("int4",), 1.4),
    Target("prefill", "int8", ("fp32",), 2.0),
)
"""What the project promises of decoders whose weights exceed the CPU's caches."""


@dataclass(frozen=True)
class Verdict:
    """A target and what was measured.

    Attributes:
        station: What ran.
        faster: The bundle that should be faster.
        slower: The one that it is compared with.
        least: The ratio that is wanted.
        wall_ratio: Measured.
        processor_ratio: Measured by processor time.
        exceeds_cache: The slower one's decoder is larger than the largest cache; None where that is not known.
    """

    station: str
    faster: str
    slower: str
    least: float
    wall_ratio: Quartiles
    processor_ratio: Quartiles
    exceeds_cache: bool | None

    @property
    def is_met(self) -> bool:
        """True where the median by the wall clock reaches the target."""
        return self.wall_ratio.median >= self.least


@dataclass(frozen=True)
class Comparison:
    """What was measured, and where.

    Attributes:
        variants: The bundles, in the order given.
        peak_memory_bytes: By bundle.
        lines: One per bundle and station.
        verdicts: One per target and pair of bundles that it speaks of.
        plan: What was asked for.
        machine: Where.
    """

    variants: tuple[Variant, ...]
    peak_memory_bytes: dict[str, int]
    lines: tuple[Line, ...]
    verdicts: tuple[Verdict, ...]
    plan: Plan
    machine: Machine

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data, verdicts included."""
        verdicts = [{**asdict(verdict), "is_met": verdict.is_met} for verdict in self.verdicts]
        return {**asdict(self), "verdicts": verdicts}


Readings = Mapping[Station, Mapping[str, Sequence[Reading]]]


def compare(bundles: Sequence[Path], plan: Plan, progress: Callable[[str], None] | None = None) -> Comparison:
    """Return the comparison of at least two bundles of one model; the first is what the others are compared with.

    Raises:
        SettingsError: Fewer than two bundles, two of one name, or one that has no decoder or too small a context.
        BundleError: A bundle is refused.
        MachineError: This machine cannot run one.
    """
    names = [bundle.resolve().name for bundle in bundles]
    if len(bundles) < 2 or len(set(names)) < len(names):
        raise SettingsError(
            f"{', '.join(names) or 'nothing'}: a comparison takes two bundles or more, in folders of different names"
        )
    say = progress or (lambda line: None)
    with ExitStack() as stack:
        contestants: dict[str, Contestant] = {}
        variants: list[Variant] = []
        for name, bundle in zip(names, bundles, strict=True):
            say(f"opening {name}")
            bench = Bench(bundle, plan.stations, plan.threads, plan.steps)
            contestants[name] = stack.enter_context(Contestant(bench))
            variants.append(contestants[name].variant())
        readings = _take_turns(contestants, plan, say)
        peaks = {name: contestant.peak_memory_bytes() for name, contestant in contestants.items()}
    machine = this_machine(_PACKAGES)
    verdicts = judge(variants, readings, machine.cache_bytes)
    return Comparison(tuple(variants), peaks, _lines(names, readings), verdicts, plan, machine)


def _take_turns(contestants: Mapping[str, Contestant], plan: Plan, say: Callable[[str], None]) -> Readings:
    """Return every bundle's readings at every station, a first turn left out."""
    readings: dict[Station, dict[str, list[Reading]]] = {}
    for station in plan.stations:
        say(f"{station.name}: {counted(plan.rounds, 'turn')} of {counted(len(contestants), 'bundle')}")
        works = {name: partial(contestant.run, station) for name, contestant in contestants.items()}
        readings[station] = Turns(warmup=1, repeats=plan.rounds).run(works)
    return readings


def _lines(names: Sequence[str], readings: Readings) -> tuple[Line, ...]:
    lines = []
    for station, by_name in readings.items():
        for name in names:
            wall, processor = _ratios(by_name[names[0]], by_name[name])
            wall_ms = float(np.median([reading.wall_ms for reading in by_name[name]]))
            processor_ms = float(np.median([reading.processor_ms for reading in by_name[name]]))
            rate = station.size / wall_ms * 1e3
            lines.append(Line(name, station.name, wall_ms, processor_ms, rate, station.unit, wall, processor))
    return tuple(lines)


def _ratios(slower: Sequence[Reading], faster: Sequence[Reading]) -> tuple[Quartiles, Quartiles]:
    """Return how many times as fast one is as another, by the wall clock and by processor time."""
    wall = Quartiles.of_ratios([each.wall_ms for each in slower], [each.wall_ms for each in faster])
    return wall, Quartiles.of_ratios([each.processor_ms for each in slower], [each.processor_ms for each in faster])


def judge(variants: Sequence[Variant], readings: Readings, cache_bytes: int | None) -> tuple[Verdict, ...]:
    """Return what was measured of every target, for each pair of bundles that it speaks of."""
    verdicts = []
    for target in TARGETS:
        stations = [s for s in readings if s.kind == target.kind and (s.kind == "prefill" or s.size == 1)]
        faster = [variant for variant in variants if variant.scheme_of(target.kind) == target.faster]
        slower = [variant for variant in variants if variant.scheme_of(target.kind) in target.slower]
        for station in stations:
            for fast in faster:
                for slow in slower:
                    ratios = _ratios(readings[station][slow.name], readings[station][fast.name])
                    exceeds = None if cache_bytes is None else slow.step_bytes > cache_bytes
                    verdicts.append(Verdict(station.name, fast.name, slow.name, target.least, *ratios, exceeds))
    return tuple(verdicts)


def make_variants(parent: Path, weights: Sequence[str], into: Path, say: Callable[[str], None]) -> list[Path]:
    """Return bundles of the parent's weights in other schemes, made by the `pocketvlm` command where not there yet.

    Their quality is not measured: what is timed here is mostly of random weights.

    Args:
        parent: An fp32 bundle.
        weights: Names of `quantize --weights`; with a profile and what the cache holds behind them, as "int4:dual" and
            "int4:dual+int8".
        into: Gets the bundles.
        say: Told what is made.

    Raises:
        QuantizationError: The command failed; it has said why.
    """
    made = []
    for name in weights:
        output = into / f"{parent.resolve().name}-{name.replace(':', '-')}"
        if not (output / MANIFEST).is_file():
            say(f"quantizing to {name}")
            command = [sys.executable, "-m", "pocketvlm", "quantize", str(parent), "-o", str(output), "--no-evaluate"]
            command += _options_of(name)
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode != 0:
                raise QuantizationError(f"pocketvlm quantize --weights {name} failed: {done.stderr.strip()}")
        made.append(output)
    return made


def _options_of(name: str) -> list[str]:
    """Return the options of `quantize` that a name of `make_variants` stands for."""
    rest, _, cache = name.partition("+")
    weights, _, profile = rest.partition(":")
    options = ["--weights", weights]
    options += ["--profile", profile] if profile else []
    return options + (["--kv-cache", cache] if cache else [])


def print_comparison(found: Comparison, console: Console) -> None:
    """Print sizes, speeds and verdicts as tables, with what they were measured on."""
    console.print(_size_table(found))
    console.print(_speed_table(found))
    if found.verdicts:
        console.print(_verdict_table(found))
    machine, plan = found.machine, found.plan
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    cache = f", largest cache {machine.cache_bytes / 2**20:.0f} MiB" if machine.cache_bytes else ""
    threads = counted(plan.threads, "thread") if plan.threads else "one thread per physical core"
    console.print(
        f"[dim]{machine.cpu}, {counted(machine.cores, 'core')}{cache}, {threads}; {plan.rounds} turns, decode after "
        f"{plan.cached_tokens} cached tokens; {machine.system}; {versions}[/dim]"
    )


def _size_table(found: Comparison) -> Table:
    table = Table("bundle", Column("schemes", overflow="fold"), "language model", "of first", "peak memory")
    first = found.variants[0].language_model_bytes
    for variant in found.variants:
        schemes = ", ".join(f"{name} {scheme}" for name, scheme in variant.schemes.items())
        size, peak = variant.language_model_bytes, found.peak_memory_bytes[variant.name]
        table.add_row(variant.name, schemes, f"{size / 1e6:,.1f} MB", f"{size / first:.3f}", f"{peak / 1e6:,.0f} MB")
    return table


def _speed_table(found: Comparison) -> Table:
    table = Table(Column(no_wrap=True), "ms", "CPU ms", "per second", "times as fast", "by CPU time")
    station = ""
    for line in found.lines:
        if line.station != station:
            table.add_section()
            station = line.station
            table.add_row(f"[bold]{station}[/bold]", "", "", line.unit)
        times = number(line.wall_ms), number(line.processor_ms), number(line.per_second)
        table.add_row(line.variant, *times, str(line.wall_ratio), f"{line.processor_ratio.median:.2f}")
    return table


def _verdict_table(found: Comparison) -> Table:
    table = Table("target", "wanted", "measured", "by CPU time", "verdict")
    for verdict in found.verdicts:
        told = "met" if verdict.is_met else f"[red]missed by {verdict.least - verdict.wall_ratio.median:.2f}[/red]"
        if verdict.exceeds_cache is False:
            told += " (fits the cache)"
        name = f"{verdict.station}: {verdict.faster} over {verdict.slower}"
        table.add_row(
            name, f"{verdict.least:g}", str(verdict.wall_ratio), f"{verdict.processor_ratio.median:.2f}", told
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the module's own command line; return the exit code."""
    options = _parser().parse_args(arguments)
    console, told = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        plan = Plan(
            options.prompt_tokens,
            tuple(options.batch_sizes),
            options.cached_tokens,
            options.steps,
            options.rounds,
            options.threads,
        )
        with tempfile.TemporaryDirectory() as scratch:
            into = options.into or Path(scratch)
            made = make_variants(options.bundles[0], options.weights, into, told.print)
            found = compare([*options.bundles, *made], plan, told.print)
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.as_json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        print_comparison(found, console)
    return 0


def _parser() -> argparse.ArgumentParser:
    plan = Plan()
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.schemes",
        description="Weight schemes of one model against each other on this machine, in turns.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("bundles", type=Path, nargs="+", help="bundles of one model; the first is what the others are compared with")
    add(
        "--weights",
        nargs="*",
        default=[],
        help="also compare the first bundle's weights in these schemes: NAME[:PROFILE][+CACHE], such as int4:dual+int8",
    )
    add("--into", type=Path, help="keep those bundles in this folder, and take what is there already")
    add("--prompt-tokens", type=int, default=plan.prompt_tokens, help="of a prefill")
    add("--batch-sizes", type=int, nargs="+", default=plan.batch_sizes, help="of decode steps")
    add("--cached-tokens", type=int, default=plan.cached_tokens, help="before each decode step")
    add("--steps", type=int, default=plan.steps, help="decode steps in a turn")
    add("--rounds", type=int, default=plan.rounds, help="turns of each bundle at each station")
    add("--threads", type=int, default=plan.threads, help="inside one operator; 0 means one per physical core")
    add("--json", dest="as_json", action="store_true", help="print the comparison as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
