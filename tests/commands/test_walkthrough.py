"""The main job on the shipped models, as `make demo` runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from bundle.directory import open_bundle
from commands.shipped import SERVED

ROOT = Path(__file__).resolve().parents[2]


def demo(folder: Path) -> str:
    command = [sys.executable, "-m", "pocketvlm", "demo", "--folder", str(folder), "--samples", "9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_demo_makes_every_variant_answers_over_http_and_stops(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    first = demo(folder)
    for name in SERVED:
        for suffix in ("", "-int8", "-int4"):
            assert open_bundle(folder / f"{name}{suffix}", allow_ungated=True)
    assert "What to run next" in first
    assert "Finished server process" in (folder / "server.log").read_text()
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.data")}
    second = demo(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*.data")} == written
    answers = [line for line in first.splitlines() if line.startswith(("scene.png", "digit.png", "text.png"))]
    assert "text.png What does the text say? The text says VLM2." in answers
    assert "digit.png What digit is this? The digit is 2." in answers
    assert all(line in second for line in answers)
