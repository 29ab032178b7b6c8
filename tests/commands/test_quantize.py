"""`pocketvlm quantize`: what it is measured on, and what it never touches."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.directory import read_manifest
from bundle.manifest import Manifest
from commands.quantize import _calibration, evaluation_of
from commands.shipped import SOURCE_SHA256

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("bundle", "commands", "export", "graphs", "loadtests", "quant", "runtime", "serving")
CALLS = """
import json, sys
sys.modules["reference"] = None
import pocketvlm
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["pocketvlm", *arguments]
    try:
        pocketvlm.main()
    except SystemExit as end:
        print(arguments[0], end.code or 0, file=sys.stderr)
"""


def test_an_existing_folder_that_is_no_bundle_is_never_replaced(pocketvlm, clip_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    done = pocketvlm("quantize", clip_bundle, "-o", tmp_path, "--weights", "int8", "--overwrite")
    assert done.returncode == 1
    assert (tmp_path / "precious.txt").read_text() == "keep me"


def test_another_model_is_handled_where_there_is_no_reference_folder(clip_bundle, smolvlm_bundle, tmp_path) -> None:
    """In a copy of our packages without reference/, and with the name `reference` blocked."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pocketvlm.py", tmp_path)
    calls = [
        ["quantize", clip_bundle, "-o", "int8", "--weights", "int8", "--no-tune"],
        ["quantize", smolvlm_bundle, "-o", "gptq", "--weights", "int4-gptq", "--no-evaluate", "--no-tune"],
        ["inspect", "int8"],
        ["report", "int8", "--no-speed"],
        ["run", smolvlm_bundle, "--max-tokens", "1", "what?"],
    ]
    line = json.dumps([[str(word) for word in call] for call in calls])
    command = [sys.executable, "-c", CALLS, line]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    for call in calls:
        assert f"{call[0]} 0" in done.stderr.splitlines(), done.stderr
    assert read_manifest(tmp_path / "int8").components["vision_encoder"].scheme == "int8"


def test_a_missed_gate_is_exit_code_three(pocketvlm, clip_bundle: Path, tmp_path: Path) -> None:
    arguments = ("--weights", "int8", "--no-tune", "--limit", "canary_cosine=1.0")
    done = pocketvlm("quantize", clip_bundle, "-o", tmp_path / "int8", *arguments)
    assert done.returncode == 3, done.stderr
    assert read_manifest(tmp_path / "int8").has_failed_gate


def bundle_of(digest: str, parent: Path, folder: Path) -> Path:
    """A manifest alone, of another checkpoint."""
    manifest: Manifest = read_manifest(parent).model_copy(update={"source_sha256": digest})
    folder.mkdir()
    (folder / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", SOURCE_SHA256)
def test_a_shipped_model_is_measured_on_its_held_out_samples(name: str, clip_bundle: Path, tmp_path: Path) -> None:
    evaluation = evaluation_of(bundle_of(SOURCE_SHA256[name], clip_bundle, tmp_path / name), None, 1)
    assert bool(evaluation.captions) == (name == "clip")


def test_another_model_is_fitted_to_one_built_in_half_and_measured_on_the_other(smolvlm_bundle: Path) -> None:
    fitted, measured = _calibration(smolvlm_bundle, None), evaluation_of(smolvlm_bundle, None, 1)
    assert fitted.source.startswith("built-in calibration texts")
    assert measured.source.startswith("built-in evaluation texts")
    answers = [{question.answer for question in each.questions} for each in (fitted, measured)]
    assert all(answers)
    assert not answers[0] & answers[1]


def test_a_users_own_samples_come_before_the_built_in_ones(smolvlm_bundle: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.jsonl"
    own.write_text('{"image": [], "question": "Who?", "answer": "Me."}')
    assert [each.source for each in (_calibration(smolvlm_bundle, own), evaluation_of(smolvlm_bundle, own, 1))] == [
        "mine.jsonl",
        "mine.jsonl",
    ]


def test_samples_of_another_language_and_samples_too_few_are_told_before_anything_is_made(
    pocketvlm, smolvlm_bundle: Path, tmp_path: Path
) -> None:
    for name, answer in (("fitted", "It is."), ("measured", "Да, это так.")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"image": [], "question": "?", "answer": answer}))
    files = ("--calibration", tmp_path / "fitted.jsonl", "--eval", tmp_path / "measured.jsonl")
    done = pocketvlm("quantize", smolvlm_bundle, "-o", tmp_path / "out", "--weights", "int8", "--no-tune", *files)
    told = " ".join(done.stderr.split())
    assert "of the tokens of measured.jsonl never occur in fitted.jsonl" in told
    assert "measured.jsonl gives 1 answers to judge, and no fewer than 100 can pass" in told
    assert done.returncode == 1
    assert not (tmp_path / "out").exists()


def test_a_strangers_model_is_measured_without_being_told_and_says_on_what(
    pocketvlm, smolvlm_bundle: Path, tmp_path: Path
) -> None:
    done = pocketvlm("quantize", smolvlm_bundle, "-o", tmp_path / "int8", "--weights", "int8", "--no-tune")
    told = " ".join(done.stderr.split())
    assert ", built-in calibration texts" in told
    assert ", built-in evaluation texts" in told
    manifest = read_manifest(tmp_path / "int8")
    assert {gate.name for gate in manifest.gates if gate.basis == "samples"} >= {"kl_mean", "clear_agreement"}
    assert {each.name for each in manifest.unmeasured} >= {"accuracy_loss_points/low", "accuracy_loss_points/high"}
    assert done.returncode == (3 if manifest.has_failed_gate else 0)
