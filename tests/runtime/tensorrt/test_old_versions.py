"""Modules of older versions of TensorRT, which lack names of newer ones; the stand-in without those names."""

from __future__ import annotations

import enum
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir
import pytest

import runtime.tensorrt.engine_graph as engine_graph_module
import runtime.tensorrt.library as library_module
from bundle.directory import Bundle
from bundle.errors import MachineError
from graphs.store import save_graph
from runtime.canary import check_canary
from runtime.fixed_run import device_value
from runtime.session import Session
from runtime.settings import RuntimeSettings
from runtime.tensorrt.compiler import Form, Job, compile_bundle
from runtime.tensorrt.library import Library
from runtime.tensorrt.network import check_network, decompose, parse
from runtime.tensorrt.profiles import Limits


@dataclass
class _Cut:
    """A module without some of its names."""

    module: ModuleType
    version: str
    lacks: frozenset[str]

    @property
    def __version__(self) -> str:
        return self.version

    def __getattr__(self, name: str) -> Any:
        if name in self.lacks:
            raise AttributeError(f"module 'tensorrt' has no attribute {name!r}")
        return getattr(self.module, name)


class _LayerType(enum.Enum):
    OTHER = 3


ATTENTION = frozenset({"IAttention", "IAttentionInputLayer"})
"""Of 10.14; `LayerType.ATTENTION_INPUT` came with them."""
CAUSAL_KINDS = frozenset({"CausalMaskKind"})
"""Of 10.16."""
RTX = frozenset({"ComputeCapability", "IRuntimeConfig", "IRuntimeCache"})
"""Of TensorRT-RTX alone."""


@pytest.fixture
def module_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Any]:
    """Return the module of a version, which is the one that is installed from then on."""

    def module(version: str) -> Any:
        spec = importlib.util.spec_from_file_location("old_stand_in", Path(__file__).with_name("stand_in.py"))
        assert spec is not None
        assert spec.loader is not None
        made: Any = importlib.util.module_from_spec(spec)  # of its own: it is changed
        spec.loader.exec_module(made)
        minor = int(version.split(".")[1])
        lacks = RTX | (CAUSAL_KINDS if minor < 16 else frozenset()) | (ATTENTION if minor < 14 else frozenset())
        if minor < 14:

            def without_attention(self: Any, node: Any) -> None:
                self._node, self.type = node, _LayerType.OTHER
                self.num_inputs, self.num_outputs = len(node.input), len(node.output)

            monkeypatch.setattr(made, "LayerType", _LayerType)
            monkeypatch.setattr(made.ILayer, "__init__", without_attention)
        if minor < 16:
            monkeypatch.delattr(made.IAttention, "causal_kind")
        if minor < 15:
            monkeypatch.delattr(made.ICudaEngine, "get_aliased_input_tensor")
        cut = _Cut(made, version, lacks)
        monkeypatch.setattr(library_module, "_proper", lambda: cut)
        return cut

    monkeypatch.setattr(engine_graph_module, "device_value", lambda array, device: device_value(array, "cpu"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return module


@pytest.mark.parametrize(("version", "form"), [("10.3.0", "plain"), ("10.15.1.29", "standard")])
def test_engines_are_built_and_replayed_by_a_version_without_the_newer_names(
    module_of: Callable[[str], Any],
    portable_of: Callable[..., Bundle],
    standard: Form,
    plain: Form,
    limits: Limits,
    tmp_path: Path,
    version: str,
    form: str,
) -> None:
    module_of(version)
    bundle = portable_of("vlm", "fp16")
    job = Job(bundle, tmp_path / "engines", "tensorrt", plain if form == "plain" else standard, limits)
    index = compile_bundle(job, lambda line: None)
    assert {record.key.builder_version for record in index.engines.values()} == {version}
    settings = RuntimeSettings(provider="cuda", intra_threads=1, engines=(job.folder,))
    check_canary(bundle, {"decoder": Session(bundle, "decoder", settings)})


@pytest.mark.parametrize("version", ["10.15.1.29", "10.16.1.11"])
def test_a_mask_that_is_not_ours_is_noticed_whichever_way_a_version_tells_of_it(
    module_of: Callable[[str], Any], model_of: Any, tmp_path: Path, version: str
) -> None:
    module = module_of(version)
    inputs = {name: (ir.DataType.FLOAT, ["B", 4, 8, 16]) for name in ("q", "k", "v")}
    heads = {"is_causal": 1}
    path = tmp_path / "vision_encoder.onnx"
    save_graph(model_of(inputs, [("Attention", ["q", "k", "v"], "y", heads)], {}, ["y"]), path)
    network = parse(Library("tensorrt", module), path.read_bytes(), path)
    decompose(network)
    with pytest.raises(MachineError, match="another mask"):
        check_network(network, "vision_encoder")
