"""Variants are made once, within their bits, measured on texts alone, and stand on one page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundle.directory import MANIFEST, open_bundle, read_manifest
from bundle.report import read_report
from loadtests.variants import MOST_FITTED, RECIPES, Recipe, Samples, main
from quant.planning.recipes import read_weights
from quant.samples.built_in import built_in_samples

FEW = ("--fitted", "2", "--texts", "3")


def test_variants_are_made_once_and_stand_on_one_page(
    smolvlm_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(smolvlm_bundle), str(tmp_path), "--variants", "int8-rtn", "int4-rtn", "--no-speed", *FEW]
    assert main(command) == 0
    assert "making int8-rtn" in capsys.readouterr().err
    report = read_report(open_bundle(tmp_path / "int4-rtn", allow_ungated=True))
    assert report.evaluation is not None
    assert (report.evaluation.source, report.evaluation.num_samples) == ("built-in evaluation texts", 3)
    page = (tmp_path / "report.html").read_text()
    assert "int8-rtn" in page
    assert "int4-rtn" in page
    assert (tmp_path / "report-loss-by-size.png").is_file()
    assert main(command) == 0
    assert "making" not in capsys.readouterr().err


def test_a_variant_of_another_checkpoint_or_of_other_samples_is_made_anew(
    smolvlm_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(smolvlm_bundle), str(tmp_path), "--variants", "int8-rtn", "--no-speed", "--fitted", "2", "--texts"]
    assert main([*command, "3"]) == 0
    assert main([*command, "2"]) == 0
    assert "making int8-rtn anew: the one that is there was not measured on 2 texts" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "int8-rtn" / MANIFEST).read_text())
    (tmp_path / "int8-rtn" / MANIFEST).write_text(json.dumps(manifest | {"source_sha256": "0" * 64}))
    assert main([*command, "2"]) == 0
    assert "making int8-rtn anew: the one that is there is of another checkpoint" in capsys.readouterr().err


def test_a_recipe_is_planned_with_the_built_in_times() -> None:
    options = Recipe("int8", 32, "memory").options
    assert (options.block_size, options.profile, options.tune) == (32, "memory", False)


def test_weights_are_fitted_to_as_many_samples_as_are_asked_for(smolvlm_bundle: Path) -> None:
    bundle = open_bundle(smolvlm_bundle)
    few, every = (Samples(fitted).calibration(bundle).questions for fitted in (7, MOST_FITTED))
    assert len(few) == 7
    assert list(every) == list(built_in_samples(bundle, "calibration").questions)


def test_every_recipe_asks_for_weights_that_exist(smolvlm_bundle: Path) -> None:
    for recipe in RECIPES.values():
        read_weights(recipe.weights, read_manifest(smolvlm_bundle))


def test_what_is_no_bundle_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {tmp_path} is not a bundle")
