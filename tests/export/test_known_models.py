"""The list of models says what the program does."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundle.errors import UnknownArchitectureError
from export.architectures import ARCHITECTURES, load_family
from export.known_models import known_models

ROOT = Path(__file__).parents[2]


def test_every_model_that_is_exported_is_listed_with_its_file_and_its_test() -> None:
    rows = {row.model_type: row for row in known_models() if row.reached.startswith("runs")}
    assert rows.keys() == ARCHITECTURES.keys()
    for model_type, row in rows.items():
        module = ARCHITECTURES[model_type].split(":")[0]
        assert row.file == f"{module.replace('.', '/')}.py"
        assert (ROOT / row.test).is_file(), row.test


def test_the_first_page_names_every_model_that_runs() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [each for each in ARCHITECTURES if f"`{each}`" not in page] == []


def test_what_does_not_run_has_no_file_and_a_reason() -> None:
    for row in known_models():
        assert row.pattern
        if not row.reached.startswith("runs"):
            assert not row.file
            assert not row.test


def test_a_known_model_that_is_not_built_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = tmp_path / "known_models.tsv"
    table.write_text("model_type\tpattern\tfile\ttest\treached\nwaits\tits tower is not built\t\t\tnot yet\n")
    monkeypatch.setattr("export.known_models._FILE", table)
    with pytest.raises(UnknownArchitectureError, match="'waits' has no exporter, for its tower is not built"):
        load_family({"model_type": "waits"})
    with pytest.raises(UnknownArchitectureError, match="'no-such' has no exporter; known: "):
        load_family({"model_type": "no-such"})
