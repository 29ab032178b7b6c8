"""Memory of the cache goes with the budget, as the kernel counts it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bundle.directory import open_bundle
from loadtests.cache_memory import main, measure


@pytest.mark.skipif(sys.platform != "linux", reason="pages are counted by Linux' mincore")
def test_half_of_the_rows_take_half_of_the_memory(smolvlm_bundle: Path) -> None:
    # of each answer and each of 2 heads of 3 layers' keys and values, rows begin and end within a page
    whole, half = measure(open_bundle(smolvlm_bundle), 2, 340, "knorm", [1.0, 0.5], threads=1)
    assert half.rows == whole.rows // 2
    page_bytes = 2 * 3 * 2 * 2 * 2 * 4096
    assert half.resident_bytes < whole.resident_bytes
    for taken in (whole, half):
        assert taken.formula_bytes <= taken.resident_bytes <= taken.formula_bytes + page_bytes


def test_a_table_is_printed(smolvlm_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(smolvlm_bundle), "--answers", "1", "--prompt-tokens", "200", "--policy", "uniform"]
    assert main([*arguments, "--budgets", "0.25", "--threads", "1"]) == 0
    *_, whole, quarter = capsys.readouterr().out.splitlines()
    assert whole.startswith("| 1 |")
    assert quarter.startswith("| 0.25 |")
