"""The outcome of a load test, as data and as text; `loadtests.page` makes HTML of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtests.objectives import Verdict
from loadtests.plan import LoadPlan
from loadtests.samples import RequestSample, RunRecord
from loadtests.summary import Summary
from loadtests.wording import number


@dataclass(frozen=True)
class LoadReport:
    """What a load test measured and whether that was good enough.

    Attributes:
        url: Of the server.
        plan: What was sent.
        record: The Locust process's own account.
        summary: The figures.
        verdicts: One per objective.
        samples: Every request, warm-up included.
    """

    url: str
    plan: LoadPlan
    record: RunRecord
    summary: Summary
    verdicts: tuple[Verdict, ...]
    samples: tuple[RequestSample, ...] = field(repr=False)

    @property
    def is_met(self) -> bool:
        """Whether every objective was met."""
        return all(verdict.is_met for verdict in self.verdicts)

    def users(self) -> tuple[tuple[str, int], ...]:
        """Return each kind of user and how many of it ran."""
        return tuple(self.record.users.items())

    def to_json(self) -> dict[str, Any]:
        """Return all but the samples as plain data."""
        return {
            "url": self.url,
            "is_met": self.is_met,
            "verdicts": [{**asdict(verdict), "objective": str(verdict.objective)} for verdict in self.verdicts],
            "summary": asdict(self.summary),
            "plan": asdict(self.plan),
            "run": asdict(self.record),
        }


def print_report(report: LoadReport, console: Console) -> None:
    """Print objectives and latencies as tables."""
    table = Table("measured", "n", "mean", "p50", "p90", "p95", "p99", "max", title="milliseconds")
    for name, values in report.summary.latencies.items():
        if values is not None:
            cells = (values.mean, values.p50, values.p90, values.p95, values.p99, values.max)
            table.add_row(name, str(values.n), *(number(cell) for cell in cells))
    console.print(table)
    for name, rate in report.summary.rates.items():
        console.print(f"{name}: {'nothing measured' if rate is None else number(rate)}")
    for text, count in report.summary.errors:
        console.print(f"{count} x {text}", style="red", markup=False)
    for verdict in report.verdicts:
        found = "nothing measured" if verdict.measured is None else number(verdict.measured)
        mark = "[green]met[/green]" if verdict.is_met else "[red]missed[/red]"
        console.print(f"{mark} {verdict.objective}: {found}")
