"""Tiny checkpoints and the bundles made of them, shared by every folder's tests."""

from __future__ import annotations

import dataclasses
import os

# Before anything imports ONNX Runtime, whose wheels from 1.29 on else write a device id and events under ~/.cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Tiny matrices: one thread is faster than two that wait for each other. Set before torch and numpy start theirs.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings

from serving.settings import EngineSettings

if TYPE_CHECKING:
    from bundle.manifest import Dialect

TESTS = Path(__file__).parent
STARTS_RAY = ("serving/cluster/test_cluster.py", "loadtests/test_overhead.py")
REAL = "tests/real/"
SLOW = ("real/test_decoder.py", "commands/test_walkthrough.py", "export/test_exporter.py", "loadtests/test_run.py")

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first where workers share the suite: begun last, one would keep the others waiting."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {TESTS / file: place for place, file in enumerate((*STARTS_RAY, *SLOW))}
        items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give workers whole files, for many fixtures are made once a file.

    What starts Ray is one file to them: two clusters of two cores each are too much for a small machine. So are two
    bundles of the real decoder at once.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            if file.startswith(REAL):
                return REAL
            return "Ray" if file.removeprefix("tests/") in STARTS_RAY else file

    return ByFile(config, log)


def pytest_collection_finish() -> None:
    """Refuse a suite that takes seconds to collect: most tests need neither of these.

    Raises:
        UsageError: A test module or a conftest imports one at its top.
    """
    heavy = " and ".join(sorted({"torch", "transformers"} & sys.modules.keys()))
    if heavy:
        raise pytest.UsageError(f"collecting imported {heavy}; import it in the test or the fixture that needs it")


@pytest.fixture(scope="session", autouse=True)
def encoders_on_onnx_runtime() -> Iterator[None]:
    """Choose no engine by the time that it takes: where OpenVINO is installed, tests of the choice undo this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.encoder.has_openvino", lambda: False)
        yield


@pytest.fixture(scope="session")
def checkpoints() -> ModuleType:
    """The functions of tests/checkpoints.py."""
    beside("weight_shapes")  # which they import
    beside("blip_shapes")
    beside("deepseek_ocr_shapes")
    beside("qwen3_shapes")
    found = beside("checkpoints")
    beside("piece_tokenizers")  # which imports them
    return found


@pytest.fixture(scope="session")
def vilt_checkpoint(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViLT with random weights; read only."""
    folder = tmp_path_factory.mktemp("vilt") / "checkpoint"
    beside("pair_checkpoints").save(folder)
    return folder


@pytest.fixture(scope="session")
def bridgetower_checkpoint(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BridgeTower with random weights; read only."""
    folder = tmp_path_factory.mktemp("bridgetower") / "checkpoint"
    beside("pair_checkpoints").save_bridgetower(folder)
    return folder


@pytest.fixture(scope="session")
def all_in_one(checkpoints: ModuleType) -> ModuleType:
    """The functions of tests/all_in_one.py."""
    beside("pair_checkpoints")
    return beside("all_in_one")


@pytest.fixture(scope="session")
def rerankers(checkpoints: ModuleType) -> ModuleType:
    """The functions of tests/reranker_checkpoints.py."""
    return beside("reranker_checkpoints")


@pytest.fixture(scope="session")
def colmodernvbert(rerankers: ModuleType) -> ModuleType:
    """The functions of tests/colmodernvbert_checkpoint.py."""
    return beside("colmodernvbert_checkpoint")


@pytest.fixture(scope="session")
def embedding_gemma2(checkpoints: ModuleType) -> ModuleType:
    """The functions of tests/embedding_gemma2_checkpoint.py."""
    return beside("embedding_gemma2_checkpoint")


@pytest.fixture(scope="session")
def gguf_files() -> ModuleType:
    """The functions of tests/gguf_files.py."""
    return beside("gguf_files")


@pytest.fixture(scope="session")
def cuda_form() -> ModuleType:
    """The functions and sizes of tests/cuda_form.py."""
    return beside("cuda_form")


@pytest.fixture(scope="session")
def cuda_bundle(cuda_form: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bundle of the form that is made for CUDA, written by hand."""
    return cuda_form.write_cuda_form(tmp_path_factory.mktemp("cuda-form"))


@pytest.fixture(scope="session")
def frozen_cuda() -> ModuleType:
    """The classes of tests/frozen_cuda.py."""
    return beside("frozen_cuda")


@pytest.fixture
def frozen_device(frozen_cuda: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A CUDA device that replays what is captured, on the CPU, in the place of ONNX Runtime's."""
    device = frozen_cuda.Device()
    monkeypatch.setitem(sys.modules, "onnxruntime", device)
    return device


@pytest.fixture(scope="session")
def small_graphs() -> ModuleType:
    """The functions of tests/small_graphs.py."""
    return beside("small_graphs")


@pytest.fixture(scope="session")
def tiny_decoder() -> ModuleType:
    """The functions of tests/tiny_decoder.py."""
    return beside("tiny_decoder")


@pytest.fixture(scope="session")
def llama() -> ModuleType:
    """The functions of tests/llama.py."""
    return beside("llama")


@pytest.fixture(scope="session")
def kv_layers() -> ModuleType:
    """The functions of tests/kv_layers.py."""
    return beside("kv_layers")


@pytest.fixture(scope="session")
def kv_ports() -> ModuleType:
    """The functions of tests/kv_ports.py."""
    return beside("kv_ports")


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


@pytest.fixture(scope="session")
def edge_servers() -> Any:
    """The context manager of tests/edge_servers.py that serves a client as the edge server does; yields the URL."""
    return beside("edge_servers").edge_server


@pytest.fixture(scope="session")
def chromium() -> Any:
    """The context manager of tests/browser.py that runs a browser; skips where there is none."""
    return beside("browser").chromium


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The function that returns the graphs of tests/tiny_decoder.py on disk, by dialect and layer groups; read only.

    "contrib, cache int8" has a cache of codes.
    """
    made: dict[tuple[str, Any, bool], Any] = {}

    def model(dialect: str, layer_groups: tuple[int, ...] | None = None, *, in_segments: bool = False) -> Any:
        key = dialect, layer_groups, in_segments
        if key not in made:
            tiny = beside("tiny_decoder")
            num_layers = tiny.CONFIG.num_layers if layer_groups is None else len(layer_groups)
            config = dataclasses.replace(tiny.CONFIG, layer_groups=layer_groups, num_layers=num_layers)
            folder = tmp_path_factory.mktemp("tiny_model")
            written, *codes = dialect.split(", cache ")
            one = tiny.write_tiny_model(folder, config, written, in_segments=in_segments)
            made[key] = one.with_coded_cache(tmp_path_factory.mktemp("coded"), *codes) if codes else one
        return made[key]

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
def checkpoint_of(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a family's tiny checkpoint, written once; read only.

    Families: smolvlm (its images are cut into tiles), clip, siglip, llava-clip-llama, llava-siglip-qwen2.
    """
    made: dict[str, Path] = {}

    def checkpoint(family: str) -> Path:
        if family not in made:
            name, *parts = family.split("-")
            folder = tmp_path_factory.mktemp("checkpoint") / f"tiny-{family}"
            getattr(checkpoints, f"save_{name}")(folder, checkpoints.llava_config(*parts) if parts else None)
            made[family] = folder
        return made[family]

    return checkpoint


@pytest.fixture(scope="session")
def bundle_of(
    checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Dialect], Path]:
    """Return the folder of the bundle of `checkpoint_of(family)` in a dialect, exported once; read only."""
    from export.exporter import export_checkpoint

    made: dict[tuple[str, str], Path] = {}

    def bundle(family: str, dialect: Dialect = "contrib") -> Path:
        if (family, dialect) not in made:
            folder = tmp_path_factory.mktemp(f"bundle-{dialect}") / f"tiny-{family}"
            export_checkpoint(checkpoint_of(family), folder, dialect=dialect)
            made[family, dialect] = folder
        return made[family, dialect]

    return bundle


@pytest.fixture(scope="session")
def smolvlm_checkpoint(checkpoint_of: Callable[[str], Path]) -> Path:
    """Folder of a tiny SmolVLM checkpoint whose images are cut into tiles; read only."""
    return checkpoint_of("smolvlm")


@pytest.fixture(scope="session")
def clip_checkpoint(checkpoint_of: Callable[[str], Path]) -> Path:
    """Folder of a tiny CLIP checkpoint; read only."""
    return checkpoint_of("clip")


@pytest.fixture(scope="session")
def smolvlm_bundle(bundle_of: Callable[..., Path]) -> Path:
    """Folder of the bundle of `smolvlm_checkpoint`; read only."""
    return bundle_of("smolvlm")


@pytest.fixture(scope="session")
def clip_bundle(bundle_of: Callable[..., Path]) -> Path:
    """Folder of the bundle of `clip_checkpoint`; read only."""
    return bundle_of("clip")


@pytest.fixture(scope="session")
def llama_index_python() -> str:
    """The Python that has llama-index, whose client wants an older `openai` than the others; skips without one."""
    if named := os.environ.get("POCKETVLM_LLAMA_INDEX_PYTHON"):
        return named
    if importlib.util.find_spec("llama_index") is None:
        pytest.skip(
            "llama-index is not installed, for it wants openai < 3: make an environment of its own (docs/clients.md), "
            "and name its interpreter in POCKETVLM_LLAMA_INDEX_PYTHON"
        )
    return sys.executable
