"""`pocketvlm compile`, with TensorRT-RTX's own builder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def portable(bundle_of: Callable[..., Path]) -> Path:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux on x86-64 alone")
    return bundle_of("clip", "portable")


def test_it_writes_engines_and_says_whose_licence_they_are_under(pocketvlm, portable: Path, tmp_path: Path) -> None:
    done = pocketvlm("compile", portable, "-o", tmp_path / "engines", "--compute-capability", "8.6", "--json")
    assert done.returncode == 0, done.stderr
    index = json.loads(done.stdout)
    assert index["engines"].keys() == {"vision_encoder", "text_encoder"}
    assert index["engines"]["text_encoder"]["key"]["capabilities"] == ["8.6"]
    assert "vision_encoder: " in done.stderr
    assert (index["max_batch"], index["max_images"]) == (4, 8)
    again = pocketvlm("compile", portable, "-o", tmp_path / "engines", "--compute-capability", "8.6")
    assert "NVIDIA's own licence" in again.stdout
    assert str(tmp_path / "engines" / "text_encoder.engine") in again.stdout
    assert "kept" in again.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compute-capability", "8.7"], "Jetson Orin"),
        (["--compute-capability", "eight"], "such as 8.6"),
        (["--device-memory", "100MiB"], "Without any cache it does not fit either"),
        (["--max-batch", "0"], "greater than or equal to 1"),
        (["--max-image-side", "9999"], "has images of one size, 32 x 32 px; leave it out"),
        (["--cache-rows", "999999999"], "--cache-rows 999999999: no graph of tiny-clip has such a size; leave it out"),
        (["--max-prompt-tokens", "64"], "--max-prompt-tokens 64: no graph of"),
        (
            ["--target", "tensorrt", "--tensorrt-version", "10.15", "--compute-capability", "8.6"],
            "builds for the card that it runs on",
        ),
    ],
)
def test_what_cannot_be_built_is_a_wrong_command_line(
    pocketvlm, portable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    import runtime.tensorrt.library as library

    monkeypatch.setattr(library, "_proper", library._rtx)  # TensorRT itself is on no index
    done = pocketvlm("compile", portable, "-o", tmp_path / "engines", *options)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.replace("\u2502", " ").split())


def test_where_tensorrt_is_missing_it_says_what_installs_it(pocketvlm, portable: Path, tmp_path: Path) -> None:
    done = pocketvlm("compile", portable, "-o", tmp_path / "engines", "--target", "tensorrt")
    assert done.returncode == 1
    assert "TensorRT cannot be loaded here" in done.stderr
    assert "pip install -e '.[tensorrt]'" in done.stderr
