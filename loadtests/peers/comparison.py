"""Runs systems in turns: each open in a process of its own, one at a time at work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from bundle.errors import PocketVLMError
from bundle.machine import this_machine
from loadtests.peers.environments import Say
from loadtests.peers.measures import Kind, Measure
from loadtests.peers.process import PeerProcess
from loadtests.peers.results import Comparison, cells_of, verdicts_of
from loadtests.peers.systems import System, Workshop
from runtime.turns import Turns

_PACKAGES = ("pocketvlm", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        systems: In the order of a turn.
        measures: In the order of a run.
        turns: That count, of each; one more comes first.
        threads: Of each system.
    """

    systems: tuple[System, ...]
    measures: tuple[Measure, ...]
    turns: int
    threads: int

    def systems_of(self, measures: Sequence[Measure]) -> list[System]:
        """Return those that do one of some measures at least."""
        kinds = {measure.kind for measure in measures}
        return [system for system in self.systems if system.kinds & kinds]


@dataclass
class _Found:
    """What has been found so far."""

    readings: dict[Measure, dict[str, list[float]]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)


def compare(plan: Plan, workshop: Workshop, logs: Path, say: Say) -> Comparison:
    """Return what systems take; one that cannot be installed, opened or run is left out, with the reason."""
    found = _Found()
    systems = _ready(plan, workshop, found, say)
    logs.mkdir(parents=True, exist_ok=True)
    for measures in _together(plan.measures):
        doing = [system for system in systems if system.kinds & {measure.kind for measure in measures}]
        _measure(plan, measures, doing, workshop, logs, found, say)
    ours = frozenset(system.name for system in plan.systems if system.is_ours)
    return Comparison(
        cells=cells_of(found.readings, ours),
        verdicts=verdicts_of(found.readings, ours),
        absent=found.absent,
        versions=found.versions,
        threads=plan.threads,
        turns=plan.turns,
        machine=this_machine(_PACKAGES),
        measured_at=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def prepare(plan: Plan, workshop: Workshop, say: Say) -> Mapping[str, str]:
    """Install systems and make what they run; return those that cannot, with the reason."""
    found = _Found()
    _ready(plan, workshop, found, say)
    return found.absent


def _ready(plan: Plan, workshop: Workshop, found: _Found, say: Say) -> list[System]:
    return [system for system in plan.systems_of(plan.measures) if _is_ready(system, workshop, found, say)]


def _together(measures: Sequence[Measure]) -> Iterator[list[Measure]]:
    """Yield the measures of vision-language models, then those of towers and of encoders: systems are open for one."""
    alone: tuple[Kind, ...] = ("encode", "embed")
    for kind in (None, *alone):
        if those := [measure for measure in measures if (measure.kind if measure.kind in alone else None) == kind]:
            yield those


def _is_ready(system: System, workshop: Workshop, found: _Found, say: Say) -> bool:
    """Install a system and make what it runs; return whether that went well."""
    try:
        system.environment.install(workshop.environments, say)
        system.arguments(workshop)
    except PocketVLMError as error:
        say(f"{system.name} is left out: {error}")
        found.absent[system.name] = str(error).splitlines()[0]
        return False
    return True


def _measure(
    plan: Plan,
    measures: Sequence[Measure],
    systems: Sequence[System],
    workshop: Workshop,
    logs: Path,
    found: _Found,
    say: Say,
) -> None:
    """Open systems, run measures in turns, and close them."""
    with ExitStack() as stack:
        processes: dict[str, PeerProcess] = {}
        for system in systems:
            say(f"opening {system.name}")
            try:
                process = PeerProcess(
                    system.name, system.command(workshop, plan.threads), plan.threads, logs / f"{system.name}.log"
                )
            except PocketVLMError as error:
                say(str(error))
                found.absent[system.name] = str(error)
                continue
            processes[system.name] = stack.enter_context(process)
            found.versions[system.name] = process.versions
        for measure in measures:
            doing = {
                system.name: processes[system.name]
                for system in systems
                if system.name in processes and measure.kind in system.kinds & processes[system.name].kinds
            }
            say(f"{measure.name}: {', '.join(doing)}")
            found.readings[measure] = take_turns(doing, measure, plan.turns, found.absent)


def take_turns(
    processes: Mapping[str, PeerProcess], measure: Measure, turns: int, absent: dict[str, str]
) -> dict[str, list[float]]:
    """Return each process's milliseconds, a first turn dropped; one that fails is left out, with the reason."""
    readings: dict[str, list[float]] = {name: [] for name in processes}
    for counts in Turns(warmup=1, repeats=turns).rounds():
        for name in list(readings):
            try:
                taken_ms = processes[name].run(measure)
            except PocketVLMError as error:
                absent[name] = f"{measure.name}: {error}"
                del readings[name]
                continue
            if counts:
                readings[name].append(taken_ms)
    return readings
