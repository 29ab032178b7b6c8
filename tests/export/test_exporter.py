from __future__ import annotations

from pathlib import Path

import pytest

from bundle.directory import open_bundle


@pytest.mark.parametrize("fixture", ["smolvlm_bundle", "clip_bundle"])
def test_export_makes_a_bundle_that_opens(fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    manifest = open_bundle(folder)
    assert {f"{part}.onnx" for part in manifest.components} <= set(manifest.files)
