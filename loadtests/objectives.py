"""Stated objectives such as `ttft_p95_ms<500`: parsed, and held against what a load test measured."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass

from bundle.errors import SettingsError
from loadtests.distribution import STATISTICS
from loadtests.summary import LATENCIES, RATES, Summary

_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_FORM = re.compile(r"\s*(?P<metric>[a-z0-9_]+)\s*(?P<sign><=|>=|<|>)\s*(?P<limit>[0-9.eE+-]+)(?P<percent>%?)\s*")
_LATENCY = re.compile(rf"(?P<name>{'|'.join(LATENCIES)})_(?P<statistic>{'|'.join(STATISTICS)})_ms")

NO_FAILURES = "failure_rate<=0"
"""Held against every run that states no objective of its own for `failure_rate`."""


@dataclass(frozen=True)
class Objective:
    """A metric, a comparison and a limit in the metric's unit."""

    metric: str
    sign: str
    limit: float

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.limit:g}"


@dataclass(frozen=True)
class Verdict:
    """An objective held against a run; `measured` is None where nothing was measured, which is a miss."""

    objective: Objective
    measured: float | None
    is_met: bool


def parse_objective(text: str) -> Objective:
    """Return the objective that a text like `itl_p95_ms<50` or `failure_rate<=1%` states.

    Raises:
        SettingsError: The form, the metric or the limit is not understood.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise SettingsError(f"objective {text!r} is not METRIC<NUMBER, e.g. ttft_p95_ms<500")
    metric = match["metric"]
    if metric not in RATES and not _LATENCY.fullmatch(metric):
        raise SettingsError(f"objective {text!r}: no metric {metric!r}. {_known_metrics()}")
    if match["percent"] and metric != "failure_rate":
        raise SettingsError(f"objective {text!r}: only failure_rate takes a percentage")
    limit = _limit(text, match["limit"])
    return Objective(metric, match["sign"], limit / 100 if match["percent"] else limit)


def _limit(text: str, number: str) -> float:
    try:
        limit = float(number)
    except ValueError as error:
        raise SettingsError(f"objective {text!r}: {number!r} is not a number") from error
    if not math.isfinite(limit) or limit < 0:
        raise SettingsError(f"objective {text!r}: the limit {number} must be finite and at least 0")
    return limit


def _known_metrics() -> str:
    latencies = "|".join(LATENCIES)
    return f"Known: ({latencies})_({'|'.join(STATISTICS)})_ms, {', '.join(RATES)}"


def parse_objectives(texts: Iterable[str]) -> tuple[Objective, ...]:
    """Return the stated objectives, with `NO_FAILURES` in front unless `failure_rate` is among them."""
    stated = tuple(parse_objective(text) for text in texts)
    if any(objective.metric == "failure_rate" for objective in stated):
        return stated
    return (parse_objective(NO_FAILURES), *stated)


def judge(objectives: Iterable[Objective], summary: Summary) -> tuple[Verdict, ...]:
    """Return one verdict per objective; a metric of which nothing was measured is a miss."""
    return tuple(_verdict(objective, measured_value(objective.metric, summary)) for objective in objectives)


def _verdict(objective: Objective, measured: float | None) -> Verdict:
    is_met = measured is not None and bool(_COMPARE[objective.sign](measured, objective.limit))
    return Verdict(objective, measured, is_met)


def measured_value(metric: str, summary: Summary) -> float | None:
    """Return what a run measured of a metric, None where it measured nothing of it."""
    match = _LATENCY.fullmatch(metric)
    if match is None:
        return summary.rates[metric]
    distribution = summary.latencies[match["name"]]
    return None if distribution is None else distribution.statistic(match["statistic"])
