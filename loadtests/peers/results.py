"""What a comparison found: medians, ratios to the best peer, and what was wanted; as text, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from bundle.machine import Machine
from loadtests.peers.measures import MEASURES, Measure
from loadtests.wording import counted, number
from runtime.turns import Quartiles

Readings = Mapping[Measure, Mapping[str, Sequence[float]]]
"""Milliseconds by measure and system, one of each turn; a system that failed is not there."""

WANTED = {
    "vision": 1.0,
    "prefill-512": 1.0,
    "prefill-1200": 1.0,
    "decode-1": 1.3,
    "decode-8": 1.5,
    "first-token-new": 1.0,
    "first-token-again": 1.0,
    "chats-8": 1.3,
    "siglip-1": 1.0,
    "siglip-8": 1.0,
    "clip-1": 1.2,
    "clip-8": 1.2,
    "clip-32": 1.2,
}
"""How many times as fast as the best peer PocketVLM's best variant shall be."""


@dataclass(frozen=True)
class Cell:
    """One system at one measure.

    Attributes:
        measure: Its name.
        system: Its name.
        ms: Of one run, of one step of a decode; of all chats together.
        per_second: Tokens or images at the median; None where no rate is shown.
        speed: How many times as fast as the best peer, within each turn; None where no peer does it.
    """

    measure: str
    system: str
    ms: Quartiles
    per_second: float | None
    speed: Quartiles | None

    @property
    def text(self) -> str:
        """Return what a table shows: the median, and the quartiles."""
        return f"{number(self.ms.median)} ({number(self.ms.low)}-{number(self.ms.high)})"


@dataclass(frozen=True)
class Verdict:
    """What was wanted of a measure, and what was found.

    Attributes:
        measure: Its name.
        ours: Our fastest variant.
        peer: The fastest peer.
        speed: How many times as fast ours is, within each turn.
        wanted: At least.
    """

    measure: str
    ours: str
    peer: str
    speed: Quartiles
    wanted: float

    @property
    def is_met(self) -> bool:
        """True where the median reaches what was wanted."""
        return self.speed.median >= self.wanted


@dataclass(frozen=True)
class Comparison:
    """All of it.

    Attributes:
        cells: By measure, then system, in the order of the tables.
        verdicts: One per measure that one of ours and a peer did.
        absent: System -> why it is not there, or not everywhere.
        versions: System -> package -> version.
        threads: Of each system.
        turns: That count.
        machine: Where.
        measured_at: Date and time, with zone.
    """

    cells: tuple[Cell, ...]
    verdicts: tuple[Verdict, ...]
    absent: Mapping[str, str]
    versions: Mapping[str, Mapping[str, str]]
    threads: int
    turns: int
    machine: Machine
    measured_at: str

    @property
    def measures(self) -> list[str]:
        """Those that one system did at least."""
        found = {cell.measure for cell in self.cells}
        return [measure.name for measure in MEASURES if measure.name in found]

    @property
    def systems(self) -> list[str]:
        """Those that did one measure at least."""
        return list(dict.fromkeys(cell.system for cell in self.cells))

    def cell(self, measure: str, system: str) -> Cell | None:
        """Return one cell; None where it was not measured."""
        return next((cell for cell in self.cells if (cell.measure, cell.system) == (measure, system)), None)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        verdicts = [{**asdict(verdict), "is_met": verdict.is_met} for verdict in self.verdicts]
        return {**asdict(self), "verdicts": verdicts}


def cells_of(readings: Readings, ours: frozenset[str]) -> tuple[Cell, ...]:
    """Return a cell per measure and system; what is not ours is a peer."""
    found = []
    for measure, by_system in readings.items():
        best = _fastest(by_system, [name for name in by_system if name not in ours])
        for system, times_ms in by_system.items():
            ms = Quartiles.of(times_ms)
            rate = measure.items / ms.median * 1e3 if measure.unit else None
            speed = Quartiles.of_ratios(by_system[best], times_ms) if best else None
            found.append(Cell(measure.name, system, ms, rate, speed))
    return tuple(found)


def verdicts_of(readings: Readings, ours: frozenset[str]) -> tuple[Verdict, ...]:
    """Return what was wanted of each measure that one of ours and a peer did, and what was found."""
    found = []
    for measure, by_system in readings.items():
        own = _fastest(by_system, [name for name in by_system if name in ours])
        peer = _fastest(by_system, [name for name in by_system if name not in ours])
        if own and peer:
            speed = Quartiles.of_ratios(by_system[peer], by_system[own])
            found.append(Verdict(measure.name, own, peer, speed, WANTED[measure.name]))
    return tuple(found)


def _fastest(by_system: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """Return the name of least median; empty where there are none."""
    return min(names, key=lambda name: Quartiles.of(by_system[name]).median, default="")


def markdown(found: Comparison) -> str:
    """Return the tables in Markdown."""
    heads = ["ms (quartiles), times the best peer's speed", *found.measures]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for system in found.systems:
        cells = [found.cell(measure, system) for measure in found.measures]
        lines.append(_row([system, *(_with_speed(cell) for cell in cells)]))
    lines += ["", _row(["measure", "ours", "best peer", "times as fast", "wanted", ""]), _row(["---"] * 6)]
    for each in found.verdicts:
        told = "met" if each.is_met else "missed"
        lines.append(_row([each.measure, each.ours, each.peer, str(each.speed), f"{each.wanted:g}", told]))
    return "\n".join([*lines, "", *told_of(found)]) + "\n"


def _with_speed(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    rate = f", {number(cell.per_second)}/s" if cell.per_second else ""
    return f"{cell.text}{rate}" + (f", x {cell.speed.median:.2f}" if cell.speed else "")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def told_of(found: Comparison) -> list[str]:
    """Return what a reader must know of the figures, in lines."""
    machine = found.machine
    versions = {f"{name} {version}" for told in found.versions.values() for name, version in told.items()}
    lines = [
        f"{found.measured_at}; {machine.cpu}, {counted(machine.cores, 'core')}, {counted(found.threads, 'thread')} "
        f"each; {counted(found.turns, 'turn')}, a first one dropped; {machine.system}.",
        f"Versions: {', '.join(sorted(versions))}.",
        "Random weights of SmolVLM-256M's, SigLIP-B/16's and CLIP-B/32's sizes: speed alone is compared.",
    ]
    return lines + [f"{system} is absent, or in part: {why}" for system, why in found.absent.items()]


def print_comparison(found: Comparison, console: Console) -> None:
    """Print a table per measure, then what was wanted."""
    for measure in found.measures:
        table = Table(title=measure, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
        for head in ("system", "ms (quartiles)", "per second", "times the best peer"):
            table.add_column(head, no_wrap=True, justify="left" if head == "system" else "right")
        for system in found.systems:
            cell = found.cell(measure, system)
            if cell is not None:
                rate = number(cell.per_second) if cell.per_second else ""
                table.add_row(system, cell.text, rate, str(cell.speed) if cell.speed else "")
        console.print(table)
    console.print(_verdicts(found))
    for line in told_of(found):
        console.print(f"[dim]{line}[/dim]")


def _verdicts(found: Comparison) -> Table:
    table = Table("measure", "ours", "best peer", "times as fast", "wanted", "")
    for each in found.verdicts:
        told = "met" if each.is_met else "[red]missed[/red]"
        table.add_row(each.measure, each.ours, each.peer, str(each.speed), f"{each.wanted:g}", told)
    return table
