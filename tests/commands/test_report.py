"""`pocketvlm report`; its page is held in tests/quant/comparison."""

from __future__ import annotations

from pathlib import Path


def test_a_report_needs_a_variant_to_compare(pocketvlm, clip_bundle: Path, tmp_path: Path) -> None:
    done = pocketvlm("report", clip_bundle, "-o", tmp_path / "page.html")
    assert done.returncode == 1
    assert "Add a quantized variant" in done.stderr
    assert list(tmp_path.iterdir()) == []
