"""`pocketvlm serve` where it refuses; what it serves is held in tests/serving."""

from __future__ import annotations

from pathlib import Path


def test_a_folder_that_is_no_bundle_ends_it_with_one_line(process, tmp_path: Path) -> None:
    done = process("serve", tmp_path, "--port", 0)
    assert done.returncode == 1
    assert sum(line.startswith("error:") for line in done.stderr.splitlines()) == 1
    assert "is not a bundle" in done.stderr


def test_a_variant_without_a_measured_quality_is_inspected_but_not_served(
    pocketvlm, process, clip_bundle: Path, tmp_path: Path
) -> None:
    variant = tmp_path / "int8"
    made = pocketvlm("quantize", clip_bundle, "-o", variant, "--weights", "int8", "--no-evaluate", "--no-tune")
    assert made.returncode == 0, made.stderr
    assert "never measured on samples" in pocketvlm("inspect", variant).stdout
    served = process("serve", variant, "--port", 0)
    assert served.returncode == 1
    assert "was never measured on samples" in served.stderr
    assert "--allow-ungated" in served.stderr
