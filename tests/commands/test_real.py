"""The real model in the cache: put together once, and again when what it is made of changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bundle.directory import read_manifest
from commands import real
from reference.real import checkpoint as real_checkpoint


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, smolvlm_checkpoint: Path) -> list[Path]:
    """Where checkpoints were built; a tiny one stands for the real one."""
    folders: list[Path] = []

    def build(folder: Path, progress: real.Say) -> Path:
        folders.append(folder)
        return Path(shutil.copytree(smolvlm_checkpoint, folder))

    monkeypatch.setattr(real, "build_real_checkpoint", build)
    return folders


def silent(line: str) -> None:
    """Tell nobody."""


def test_bundle_is_made_once_and_its_checkpoint_let_go(built: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "real"
    first = real.real_bundle(folder, silent)
    assert read_manifest(first).name == "pocketvlm-real"
    assert real.real_bundle(folder, silent) == first
    assert len(built) == 1
    assert [path.name for path in folder.iterdir()] == [first.name]


def test_bundle_of_other_parts_is_made_anew_and_the_old_one_deleted(
    built: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "real"
    first = real.real_bundle(folder, silent)
    monkeypatch.setattr(real_checkpoint, "CHAT_TEMPLATE", "another")
    second = real.real_bundle(folder, silent)
    assert second != first
    assert [path.name for path in folder.iterdir()] == [second.name]
    assert len(built) == 2


def test_bundle_that_was_cut_short_is_made_anew(built: list[Path], tmp_path: Path) -> None:
    bundle = real.real_bundle(tmp_path / "real", silent)
    (bundle / "manifest.json").write_text("{")
    assert real.real_bundle(tmp_path / "real", silent) == bundle
    assert read_manifest(bundle).name == "pocketvlm-real"


def test_serve_real_without_a_way_to_fetch_it_is_one_line(
    process, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    done = process("serve", "--real", "--port", 0)
    assert done.returncode == 1
    assert "could not be fetched" in done.stderr
    assert "Traceback" not in done.stderr
