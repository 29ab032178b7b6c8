"""Whatever is said to run names the file that runs it and the test that proves it; the page is what its tables say."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.coverage import COMMAND, coverage
from export.surveyed import SurveyedSystem, surveyed_systems

ROOT = Path(__file__).parents[2]


def test_what_runs_names_a_file_and_a_test_that_exist() -> None:
    for row in surveyed_systems():
        file, test = row.proof()
        if row.reached.startswith("runs"):
            assert (ROOT / file).is_file(), row.system
            assert (ROOT / test).is_file(), row.system
            assert test.startswith("tests/"), row.system
        else:
            assert not file + test, row.system
            assert row.how, row.system


def test_every_system_stands_there_once() -> None:
    rows = surveyed_systems()
    assert len({row.system for row in rows}) == len(rows)
    assert [sum(row.scope == scope for row in rows) for scope in ("core", "servable")] == [47, 204]


def test_a_model_type_brings_its_own_file_and_test() -> None:
    row = SurveyedSystem("X", "vlm-generator", "core", "runs by pattern", "llava", "", "")
    assert row.proof() == ("export/models/llava.py", "tests/export/test_decoders.py")


def test_the_page_is_what_its_command_writes_now() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    if page != coverage(ROOT / "docs" / "benchmarks.tsv"):
        pytest.fail(f"a table changed; run: {COMMAND}")
