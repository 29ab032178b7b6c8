"""Tiny checkpoints and the bundles made of them, shared by every folder's tests."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings

# Tiny matrices: one thread is faster than two that wait for each other. Set before torch and numpy start theirs.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from export.exporter import export_checkpoint
from serving.settings import EngineSettings

# How long an example takes says more of the machine's other work than of the code.
hypothesis_settings.register_profile("shared-machine", deadline=None)
hypothesis_settings.load_profile("shared-machine")


def beside(name: str) -> ModuleType:
    """Return a module of this folder (tests are no package, so they cannot be imported)."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def checkpoints() -> ModuleType:
    """The functions of tests/checkpoints.py."""
    return beside("checkpoints")


@pytest.fixture(scope="session")
def small_graphs() -> ModuleType:
    """The functions of tests/small_graphs.py."""
    return beside("small_graphs")


@pytest.fixture
def model_of(small_graphs: ModuleType) -> Any:
    """The function that builds a model of a few nodes."""
    return small_graphs.build_model


@pytest.fixture
def run(small_graphs: ModuleType, tmp_path: Path) -> Any:
    """Runs models through files, as bundles do."""
    return small_graphs.Runner(tmp_path)


@pytest.fixture
def look() -> Any:
    """The function that shows a page in a browser; skips where there is none."""
    return beside("browser").looker()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The function that returns the graphs of tests/tiny_decoder.py on disk, by dialect and layer groups; read only."""
    made: dict[tuple[str, Any], Any] = {}

    def model(dialect: str, layer_groups: tuple[int, ...] | None = None) -> Any:
        if (dialect, layer_groups) not in made:
            tiny = beside("tiny_decoder")
            config = dataclasses.replace(tiny.CONFIG, layer_groups=layer_groups)
            folder = tmp_path_factory.mktemp("tiny_model")
            made[dialect, layer_groups] = tiny.write_tiny_model(folder, config, dialect)
        return made[dialect, layer_groups]

    return model


@pytest.fixture(scope="session")
def tiny_model(tiny_models: Any) -> Any:
    """Token graphs of the contrib dialect."""
    return tiny_models("contrib")


@pytest.fixture(scope="session")
def settings() -> EngineSettings:
    """Of an engine over `tiny_model`."""
    return EngineSettings(max_sequences=4, intra_threads=1, prefill_chunk_tokens=7)


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
