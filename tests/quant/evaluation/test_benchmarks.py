"""The table of surveyed benchmarks names formats and metrics that exist."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from quant.evaluation.formats import FORMATS
from quant.evaluation.scorers.table import METRICS

TABLE = Path(__file__).resolve().parents[3] / "docs" / "benchmarks.tsv"


def test_every_surveyed_benchmark_is_read_by_a_format_that_exists() -> None:
    rows = list(csv.DictReader(TABLE.read_text(encoding="utf-8").splitlines(), delimiter="\t"))
    assert len(rows) == len({row["benchmark"] for row in rows}) == 57
    for row in rows:
        told = FORMATS[row["format"]]
        columns = told.wanted | told.one_of | told.optional
        named = set(re.findall(r"\b(answers?|choices|examples|captions?|label|relevant|question)\b", row["columns"]))
        assert named <= columns, row["benchmark"]


def test_metrics_that_it_names_exist() -> None:
    for name in re.findall(r"metric (\w+)", TABLE.read_text(encoding="utf-8")):
        assert name in METRICS
