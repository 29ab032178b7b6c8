from __future__ import annotations

from pathlib import Path

from bundle.directory import open_bundle
from loadtests.scaling.composition import _renamed


def test_a_copy_under_another_name_is_the_same_bundle(smolvlm_bundle: Path, tmp_path: Path) -> None:
    copy = open_bundle(_renamed(smolvlm_bundle, tmp_path / "apart", "apart"))
    original = open_bundle(smolvlm_bundle)
    assert (copy.manifest.name, original.manifest.name) == ("apart", "tiny-smolvlm")
    assert copy.manifest.files == original.manifest.files
