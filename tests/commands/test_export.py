"""`pocketvlm export` where it keeps a GGUF's blocks; what it writes is held in tests/export."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from gguf import GGMLQuantizationType as Kind

from bundle.directory import read_manifest
from bundle.report import REPORT


@pytest.fixture
def checkpoint(gguf_files: ModuleType, checkpoints: ModuleType, tmp_path: Path) -> Path:
    checkpoints.save_smolvlm(tmp_path / "tiny", checkpoints.smolvlm_config(gguf_files.SIZES))
    return tmp_path / "tiny"


@pytest.fixture
def file(gguf_files: ModuleType, checkpoint: Path, tmp_path: Path) -> Path:
    return gguf_files.Maker(tmp_path, checkpoint).write(Kind.Q8_0, Kind.Q8_0)


def test_kept_blocks_are_measured_on_a_user_s_questions(
    pocketvlm, checkpoint: Path, file: Path, tmp_path: Path
) -> None:
    questions = [{"image": [], "question": f"hi {at}", "answer": "yes"} for at in range(100)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, questions)))
    bundle = tmp_path / "kept"
    done = pocketvlm(
        *("export", checkpoint, "-o", bundle, "--decoder-gguf", file, "--keep-quantized"),
        *("--eval", tmp_path / "mine.jsonl", "--name", "mine"),
    )
    manifest = read_manifest(bundle)
    assert done.returncode == (3 if manifest.has_failed_gate else 0), done.stderr
    assert manifest.name == "mine"
    assert json.loads((bundle / REPORT).read_text())["evaluation"] == {"source": "mine.jsonl", "num_samples": 100}
    assert "kl_mean" in pocketvlm("inspect", bundle).stdout


def test_kept_blocks_that_are_not_measured_are_not_served(
    pocketvlm, process, checkpoint: Path, file: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "kept"
    options = ("--decoder-gguf", file, "--keep-quantized", "--no-evaluate")
    assert pocketvlm("export", checkpoint, "-o", bundle, *options).returncode == 0
    served = process("serve", bundle, "--port", 0)
    assert served.returncode == 1
    assert "was never measured on samples" in served.stderr
    assert pocketvlm("run", bundle, "hi", "--max-tokens", 3).returncode == 0


BAD_SAMPLES = {
    "not there": (None, "mine.jsonl"),
    "no JSON": ("{", "line 1"),
    "one line": ('{"image": [], "question": "hi", "answer": "yes"}', "gives 1 answers to judge, and no fewer than 100"),
}


@pytest.mark.parametrize("name", BAD_SAMPLES)
@pytest.mark.parametrize("way", ["kept", "cuda"])
def test_samples_that_cannot_tell_are_told_before_the_work(
    pocketvlm, checkpoint: Path, file: Path, tmp_path: Path, name: str, way: str
) -> None:
    written, told = BAD_SAMPLES[name]
    if written is not None:
        (tmp_path / "mine.jsonl").write_text(written)
    options = ("--decoder-gguf", file, "--keep-quantized") if way == "kept" else ("--target", "cuda")
    done = pocketvlm("export", checkpoint, "-o", tmp_path / "out", *options, "--eval", tmp_path / "mine.jsonl")
    assert done.returncode == 1
    assert told in done.stderr
    assert "--samples" not in done.stderr
    assert "building" not in done.stderr
