"""Bundles of the shipped checkpoints are known by their digests alone, and so are measured on held-out scenes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from commands.shipped import CHECKPOINTS, SERVED, SOURCE_SHA256, WHAT_TO_ASK, is_current, shipped_name
from export.checkpoint import Checkpoint
from export.exporter import export_checkpoint

FOLDER = Path(__file__).resolve().parents[2] / "reference" / "checkpoints"


def test_a_demo_serves_a_model_that_answers_and_one_that_compares() -> None:
    assert SERVED == ("vlm-wide", "clip")
    assert all(CHECKPOINTS[name] == FOLDER / name for name in SERVED)


def test_the_digests_are_those_of_the_checkpoints() -> None:
    """After training one anew, its digest goes into the table; the real model's tower is no checkpoint by itself."""
    whole = [tokenizer.parent for tokenizer in FOLDER.glob("*/tokenizer.json")]
    found = {folder.name: Checkpoint.open(folder).digest() for folder in whole}
    assert found == SOURCE_SHA256
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("name", ["vlm-ternary", "vlm-mote"])
def test_bundle_of_a_shipped_checkpoint_is_recognised(name: str, tmp_path: Path) -> None:
    export_checkpoint(FOLDER / name, tmp_path / "bundle", name=f"pocketvlm-{name}")
    assert shipped_name(tmp_path / "bundle") == name


def test_bundle_of_another_model_is_nobodys(smolvlm_bundle: Path) -> None:
    assert shipped_name(smolvlm_bundle) is None


def test_what_is_no_bundle_is_not_current(tmp_path: Path) -> None:
    assert not is_current(tmp_path, "vlm")


def test_a_bundle_of_the_older_format_is_exported_anew(tmp_path: Path) -> None:
    recorded = json.loads((Path(__file__).parents[1] / "data" / "manifest-format-1.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(recorded | {"source_sha256": SOURCE_SHA256["vlm"]}))
    assert shipped_name(tmp_path) == "vlm"
    assert not is_current(tmp_path, "vlm")


def test_the_questions_that_a_newcomer_is_told_are_those_of_the_models_own_page() -> None:
    page = " ".join((FOLDER / "README.md").read_text(encoding="utf-8").split())
    asked = re.findall(r'"([A-Z][^"]*[?.])"', WHAT_TO_ASK)
    assert len(asked) == 5
    assert [question for question in asked if f'"{question}"' not in page] == []
