"""The latency benchmark of a bundle: `pocketvlm bench BUNDLE`, or `python -m loadtests.latency BUNDLE`.

It runs in a process of its own, so that the peak memory is the bundle's and nobody else's. First the whole engine is
asked as a server would ask it, and its memory is read; then each station is timed alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bundle.directory import Bundle, open_bundle, read_manifest
from bundle.errors import PocketVLMError, SettingsError
from bundle.machine import Machine, peak_memory_bytes, this_machine
from bundle.manifest import Manifest
from devices.energy.account import EnergyAccount, spent_joules
from loadtests.apart import run_apart
from loadtests.conversation import Conversation
from loadtests.stations import DecoderBench, measure_vision
from loadtests.stopwatch import Measurement, Stopwatch
from loadtests.wording import counted, number, out_of_range
from runtime.cache_shape import cache_shape, context_of
from serving.models.client import LocalClient
from serving.settings import EngineSettings

_PACKAGES = ("pocketvlm", "onnxruntime", "onnxruntime-gpu", "numpy", "Pillow", "tokenizers")
_MAX_BATCH = 64
_IDLE_S = 1.0
"""Long enough for ten readings of a board's power."""


@dataclass(frozen=True)
class BenchmarkPlan:
    """What to measure, and how often.

    Attributes:
        batch_sizes: Of vision, decode, whole answers and embeddings.
        prompt_tokens: Of the prefill, and cached before the first decode step.
        output_tokens: Of an answer, at most.
        image_px: Width and height of the image behind the first token.
        warmup: Runs that are not counted.
        repeats: Runs that are, at most.
        budget_s: Per measurement; slow work is repeated less often, at least three times.
        threads: Inside one operator; 0 means one per physical core.
        seed: Of images and prompts.
        allow_ungated: Measure a variant that failed its quality gate or was never held to one.
    """

    batch_sizes: tuple[int, ...] = (1, 8)
    prompt_tokens: int = 128
    output_tokens: int = 32
    image_px: int = 512
    warmup: int = 10
    repeats: int = 30
    budget_s: float = 15.0
    threads: int = 0
    seed: int = 0
    allow_ungated: bool = False

    def __post_init__(self) -> None:
        """Check every bound.

        Raises:
            SettingsError: A value is out of its range.
        """
        if not self.batch_sizes or not all(1 <= size <= _MAX_BATCH for size in self.batch_sizes):
            raise SettingsError(f"batch_sizes {self.batch_sizes} must be numbers from 1 to {_MAX_BATCH}")
        bounds: tuple[tuple[str, float, float], ...] = (
            ("prompt_tokens", 1, 1 << 20),
            ("output_tokens", 2, 1 << 20),
            ("image_px", 16, 4096),
            ("warmup", 1, 10_000),
            ("repeats", 3, 100_000),
            ("budget_s", 0.01, 3600),
            ("threads", 0, 1024),
            ("seed", 0, 2**32 - 1),
        )
        for name, low, high in bounds:
            value = getattr(self, name)
            if not low <= value <= high:
                raise SettingsError(out_of_range(name, value, low, high))

    @property
    def watch(self) -> Stopwatch:
        """How each measurement is repeated."""
        return Stopwatch(self.warmup, self.repeats, self.budget_s)

    def settings(self) -> EngineSettings:
        """Return the engine's settings: a slot for each sequence of the largest batch, no image seen twice for free."""
        return EngineSettings(
            max_sequences=max(self.batch_sizes), intra_threads=self.threads, allow_ungated=self.allow_ungated
        )


@dataclass(frozen=True)
class EnergyNote:
    """What energies of a benchmark are energies of.

    Attributes:
        meters: That were read; none: nothing is known of energy here.
        idle_watts: What they told while the model was loaded and nothing asked; None without a meter.
        silent: Why there are no others.
    """

    meters: tuple[str, ...]
    idle_watts: float | None
    silent: tuple[str, ...]

    def __str__(self) -> str:
        """Return it in one line."""
        if self.idle_watts is None:
            return f"energy: no meter ({'; '.join(self.silent)})"
        return f"energy of {', '.join(self.meters)}, {self.idle_watts:.2f} W when idle (counted in)"


@dataclass(frozen=True)
class BenchmarkReport:
    """What a bundle costs on a machine.

    Attributes:
        name: The model's.
        model_type: As in its checkpoint.
        schemes: Weight scheme by component.
        decoder_schemes: Of what runs prompts and of what runs single tokens; None without a decoder.
        weight_bytes: As stored.
        cache_bytes: Reserved for keys and values; resident as far as it was written. 0 without a decoder.
        load_s: From a bundle on disk to an engine that answers: digests, sessions, canary, warm-up.
        memory_before_bytes: Resident at most before the bundle was opened: Python and its libraries.
        peak_memory_bytes: Resident at most after the engine answered; mapped weights count as far as read.
        lines: The measurements.
        plan: What was asked for.
        machine: Where.
        energy: Of what, and what it took without work.
    """

    name: str
    model_type: str
    schemes: dict[str, str]
    decoder_schemes: tuple[str, str] | None
    weight_bytes: int
    cache_bytes: int
    load_s: float
    memory_before_bytes: int
    peak_memory_bytes: int
    lines: tuple[Measurement, ...]
    plan: BenchmarkPlan
    machine: Machine
    energy: EnergyNote

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data, rates included."""
        return {**asdict(self), "lines": [_line_json(line) for line in self.lines]}


def _line_json(line: Measurement) -> dict[str, Any]:
    told = {**asdict(line), "per_second": line.per_second}
    if line.energy is not None:
        told["energy"] = {**asdict(line.energy), "tokens_per_joule": line.energy.tokens_per_joule}
    return told


def run_benchmark(
    bundle: Path | str, plan: BenchmarkPlan | None = None, *, progress: Callable[[str], None] | None = None
) -> BenchmarkReport:
    """Return the benchmark of a bundle, measured in a fresh process.

    Args:
        bundle: The directory.
        plan: The defaults where None.
        progress: Told, in this process, what begins.

    Raises:
        SettingsError: The plan does not fit the model.
        BundleError: The bundle is refused.
        MachineError: This machine cannot run it.
    """
    manifest = read_manifest(Path(bundle))
    if manifest.reads_pairs:
        raise SettingsError(f"{manifest.name} scores pairs; what is measured here are answers and vectors")
    if progress:
        progress(f"measuring {manifest.name} in a process of its own")
    return run_apart(measure_bundle, Path(bundle), plan or BenchmarkPlan())


def measure_bundle(bundle: Path, plan: BenchmarkPlan) -> BenchmarkReport:
    """Return the benchmark of a bundle, measured in this process; its peak memory is then this process's."""
    memory_before_bytes = peak_memory_bytes()
    manifest, settings = read_manifest(bundle), plan.settings()
    with EnergyAccount() as account:
        engine_lines, load_s, energy = asyncio.run(_measure_engine(bundle, manifest, plan, account))
    peak_bytes = peak_memory_bytes()
    return BenchmarkReport(
        name=manifest.name,
        model_type=manifest.model_type,
        schemes={name: component.scheme for name, component in manifest.components.items()},
        weight_bytes=manifest.weight_bytes,
        decoder_schemes=_decoder_schemes(manifest),
        cache_bytes=_cache_bytes(manifest, settings),
        load_s=load_s,
        memory_before_bytes=memory_before_bytes,
        peak_memory_bytes=peak_bytes,
        lines=(*engine_lines, *_measure_stations(open_bundle(bundle, verify=False, allow_ungated=True), plan)),
        plan=plan,
        machine=this_machine(_PACKAGES),
        energy=energy,
    )


async def _measure_engine(
    bundle: Path, manifest: Manifest, plan: BenchmarkPlan, account: EnergyAccount
) -> tuple[list[Measurement], float, EnergyNote]:
    """Return the lines of the engine as a whole, the seconds it took to start, and what its energies are of."""
    settings = plan.settings()
    started_s = time.perf_counter()
    async with LocalClient([bundle], settings) as client:
        load_s = time.perf_counter() - started_s
        energy = await _idle(account)
        conversation = Conversation(client, manifest.name, plan.image_px, plan.seed, account)
        if manifest.embeds:
            lines = [
                line
                async for line in conversation.embed(
                    plan.watch, plan.batch_sizes, reads_texts=not manifest.image_vectors
                )
            ]
        else:
            lines = [line async for line in conversation.chat(plan.watch, plan.output_tokens, plan.batch_sizes)]
    return lines, load_s, energy


async def _idle(account: EnergyAccount) -> EnergyNote:
    """Return what the meters tell while nothing is asked; takes a moment where there are any, and none elsewhere."""
    before = account.entries()
    started_s = time.perf_counter()
    if before:
        await asyncio.sleep(_IDLE_S)
    joules = spent_joules(before, account.entries())
    watts = None if joules is None else joules / (time.perf_counter() - started_s)
    return EnergyNote(tuple(entry.name for entry in before), watts, account.silent)


def _measure_stations(bundle: Bundle, plan: BenchmarkPlan) -> list[Measurement]:
    """Return the lines of vision, and of prefill and decode where there is a decoder."""
    settings, watch = plan.settings(), plan.watch
    lines = list(measure_vision(bundle, settings, watch, plan.batch_sizes, plan.image_px, plan.seed))
    if bundle.manifest.decoder is not None:
        bench = DecoderBench(bundle, settings, plan.prompt_tokens, plan.output_tokens, plan.seed)
        lines += bench.measure(watch, plan.batch_sizes)
    return lines


def _decoder_schemes(manifest: Manifest) -> tuple[str, str] | None:
    """Return the schemes that run prompts and single tokens; None without a decoder."""
    if manifest.decoder is None:
        return None
    return manifest.scheme_of("decoder", "prompt"), manifest.scheme_of("decoder", "step")


def _cache_bytes(manifest: Manifest, settings: EngineSettings) -> int:
    capacity_tokens = context_of(manifest, settings.context_tokens)
    if capacity_tokens is None:
        return 0
    return cache_shape(manifest, settings.max_sequences, capacity_tokens).total_bytes


def print_benchmark(report: BenchmarkReport, console: Console) -> None:
    """Print a benchmark as a table, with what it was measured on."""
    schemes = ", ".join(f"{name} {scheme}" for name, scheme in report.schemes.items())
    console.print(f"[bold]{report.name}[/bold]  {report.model_type}: {schemes}")
    if report.decoder_schemes and len(set(report.decoder_schemes)) > 1:
        console.print("profile dual: prompts run in {}, single tokens in {}".format(*report.decoder_schemes))
    is_metered = report.energy.idle_watts is not None
    table = Table("", "n", "median ms", "p95 ms", "per second", *(("J/request", "tokens/J") if is_metered else ()))
    for line in report.lines:
        rate = "" if line.per_second is None else f"{number(line.per_second)} {line.unit}"
        times = line.milliseconds
        energy = _energy_cells(line) if is_metered else ()
        table.add_row(line.name, str(times.n), number(times.p50), number(times.p95), rate, *energy)
    console.print(table)
    console.print(str(report.energy), markup=False, soft_wrap=True)
    console.print(
        f"weights {report.weight_bytes / 1e6:,.1f} MB, cache {report.cache_bytes / 1e6:,.1f} MB reserved, "
        f"peak memory {report.peak_memory_bytes / 1e6:,.0f} MB (Python and libraries: "
        f"{report.memory_before_bytes / 1e6:,.0f} MB), ready after {report.load_s:.2f} s"
    )
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    threads = counted(report.plan.threads, "thread") if report.plan.threads else "one thread per physical core"
    where = f"{machine.cpu}, {counted(machine.cores, 'core')}, {threads}; {machine.system}"
    console.print(f"[dim]{where}; {versions}; seed {report.plan.seed}[/dim]")


def _energy_cells(line: Measurement) -> tuple[str, str]:
    if line.energy is None:
        return "", ""
    rate = line.energy.tokens_per_joule
    return number(line.energy.joules), "" if rate is None else number(rate)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the module's own command line; return the exit code."""
    options = vars(_parser().parse_args(arguments))
    bundle, as_json = options.pop("bundle"), options.pop("as_json")
    try:
        report = run_benchmark(bundle, BenchmarkPlan(**{**options, "batch_sizes": tuple(options["batch_sizes"])}))
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        print_benchmark(report, Console(highlight=False))
    return 0


def _parser() -> argparse.ArgumentParser:
    plan = BenchmarkPlan()
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.latency",
        description="The latency benchmark of a bundle.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="a bundle directory")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=plan.batch_sizes, help="sequences or images")
    for name, told in _HELP.items():
        default = getattr(plan, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=told)
    parser.add_argument(
        "--allow-ungated", action="store_true", help="measure a variant that failed its gate or has none"
    )
    parser.add_argument("--json", dest="as_json", action="store_true", help="print the report as JSON")
    return parser


_HELP = {
    "prompt_tokens": "of the prefill, and cached before the first decode step",
    "output_tokens": "of an answer, at most",
    "image_px": "width and height of the image behind the first token, pixels",
    "warmup": "runs that are not counted",
    "repeats": "runs that are, at most",
    "budget_s": "seconds per measurement; slow work is repeated less often",
    "threads": "inside one operator; 0 means one per physical core",
    "seed": "of images and prompts",
}


if __name__ == "__main__":
    sys.exit(main())
