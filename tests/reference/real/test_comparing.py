"""Variants of the real model are held against their parent on held-out pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reference.compare_real import main, questions_of


@pytest.fixture(scope="module", autouse=True)
def _fonts_and_photographs() -> None:
    """Both come with packages of the [train] extra."""
    for package in ("matplotlib", "skimage", "sklearn"):
        pytest.importorskip(package, reason=f"{package} comes with the extra train")


def test_a_question_is_judged_as_its_enquiry_says() -> None:
    (question,) = questions_of(["colour"], 1)
    assert question.task == "colour"
    assert question.is_right(question.answer)
    assert not question.is_right("I do not know.")


def test_the_parent_itself_loses_nothing_and_every_kind_is_counted(
    smolvlm_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found.json"
    kinds = ["--kinds", "colour", "photograph", "--n", "2", "--json", str(output)]
    assert main([str(smolvlm_bundle), str(smolvlm_bundle), *kinds]) == 0
    head, _, row = capsys.readouterr().out.splitlines()
    assert row.startswith(f"| {smolvlm_bundle.name} | 0.0000 |")
    assert row.count("|") == head.count("|")
    found = json.loads(output.read_text())[smolvlm_bundle.name]
    assert {name: task["n"] for name, task in found["tasks"].items()} == {"colour": 2, "photograph": 2, "all": 4}
    assert found["forced"]["top1_agreement"] == 1


def test_what_is_no_bundle_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path), "--kinds", "colour", "--n", "1"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is not a bundle")
