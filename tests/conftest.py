"""Tiny checkpoints and the bundles made of them, shared by every folder's tests."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

# Tiny matrices: one thread is faster than two that wait for each other. Set before torch and numpy start theirs.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from export.exporter import export_checkpoint


@pytest.fixture(scope="session")
def checkpoints() -> ModuleType:
    """The functions of tests/checkpoints.py (tests are no package, so they cannot be imported)."""
    spec = importlib.util.spec_from_file_location("checkpoints", Path(__file__).with_name("checkpoints.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def smolvlm_checkpoint(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny SmolVLM checkpoint whose images are cut into tiles; read only."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-smolvlm"
    checkpoints.save_smolvlm(folder)
    return folder


@pytest.fixture(scope="session")
def clip_checkpoint(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny CLIP checkpoint; read only."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-clip"
    checkpoints.save_clip(folder)
    return folder


@pytest.fixture(scope="session")
def smolvlm_bundle(smolvlm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the bundle of `smolvlm_checkpoint`; read only."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny-smolvlm"
    export_checkpoint(smolvlm_checkpoint, folder)
    return folder


@pytest.fixture(scope="session")
def clip_bundle(clip_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the bundle of `clip_checkpoint`; read only."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny-clip"
    export_checkpoint(clip_checkpoint, folder)
    return folder
