"""What a session of TensorRT's providers is opened with, recorded by a runtime that opens it on the CPU instead."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import runtime.graph as graph_module
import runtime.providers as providers_module
import runtime.tensorrt.in_place as in_place
import runtime.tensorrt.provider as provider_module
from bundle.directory import Bundle, open_bundle
from bundle.errors import BundleFormatError, MachineError
from bundle.golden import GOLDEN, load_golden
from bundle.states import ROWS
from graphs.store import open_graph, save_graph
from runtime.canary import check_canary
from runtime.fixed_run import device_value
from runtime.session import Session
from runtime.settings import DeviceRuntime, RuntimeSettings
from runtime.tensorrt.card import Card
from runtime.tensorrt.provider import TENSORRT, TENSORRT_RTX
from runtime.tensorrt.provider_graphs import check_provider_graph
from serving.models.targets import check_target
from serving.settings import EngineSettings

CPU = "CPUExecutionProvider"


class Options:
    """Session options that record what is asked of them."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.plugin: tuple[list[Any], dict[str, str]] | None = None

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        self.sizes[name] = size

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        self.plugin = devices, options


@dataclass
class Opened:
    """One session as it was asked for."""

    path: str
    options: Options
    providers: list[tuple[str, dict[str, str]]]


@dataclass
class Runtime:
    """ONNX Runtime with providers that it does not have; graphs are run by its CPU."""

    available: Sequence[str]
    strays: tuple[Any, ...] = ()
    loads: bool = True
    opened: list[Opened] = field(default_factory=list)
    registered: dict[str, str] = field(default_factory=dict)
    sees: bool = True
    graph: Path | None = None
    SessionOptions = Options

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return list(self.available)

    def register_execution_provider_library(self, name: str, path: str) -> None:
        self.registered[name] = path

    def get_ep_devices(self) -> list[Any]:
        return [SimpleNamespace(ep_name=name) for name in self.registered] if self.sees else []

    def InferenceSession(self, path: str, options: Options, providers: Any = ()) -> Any:
        self.opened.append(Opened(path, options, list(providers)))
        real = onnxruntime.SessionOptions()
        real.intra_op_num_threads = 1
        for name, size in options.sizes.items():
            real.add_free_dimension_override_by_name(name, size)
        source = str(self.graph) if path.endswith("_ctx.onnx") else path
        session = onnxruntime.InferenceSession(source, real, providers=[CPU])
        asked = TENSORRT_RTX if options.plugin else self.opened[-1].providers[0][0]
        parts = [SimpleNamespace(ep_name=asked, get_nodes=list)]
        parts += [SimpleNamespace(ep_name=CPU, get_nodes=lambda: list(self.strays))]
        session.get_providers = lambda: [asked, CPU] if self.loads else [CPU]
        session.get_provider_graph_assignment_info = lambda: parts
        return session


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Runtime]:
    """Put such a runtime in the place of ours; engines are kept in a folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(provider_module, "card_here", Card)
    monkeypatch.setattr(graph_module, "device_gate", lambda *_, **__: _NoGate())

    def used(*available: str, **named: Any) -> Runtime:
        runtime = Runtime(available, **named)
        for module in (graph_module, providers_module, provider_module):
            monkeypatch.setattr(module, "onnx_runtime", lambda: runtime)
        return runtime

    return used


class _NoGate:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def settings(flavour: DeviceRuntime = "tensorrt", **given: Any) -> EngineSettings:
    return EngineSettings(provider="cuda", device_runtime=flavour, **given)


def options_of(opened: Opened) -> dict[str, str]:
    return opened.options.plugin[1] if opened.options.plugin else opened.providers[0][1]


def test_an_encoder_is_asked_for_in_halves_with_its_profile_and_both_caches(portable_of, use, tmp_path) -> None:
    bundle: Bundle = portable_of("vlm", "fp16")
    runtime = use(TENSORRT, CPU)
    session = Session(bundle, "vision_encoder", settings(vision_batch_tiles=6))
    (opened,) = runtime.opened
    assert [name for name, _ in opened.providers] == [TENSORRT]
    options = options_of(opened)
    (spec,) = session.component.inputs
    rest = "x".join(map(str, spec.shape[1:]))
    assert options["trt_profile_min_shapes"] == f"{spec.name}:1x{rest}"
    assert options["trt_profile_max_shapes"] == f"{spec.name}:6x{rest}"
    assert options["trt_fp16_enable"] == "1"
    assert (options["trt_engine_cache_enable"], options["trt_timing_cache_enable"]) == ("1", "1")
    context = Path(options["trt_ep_context_file_path"])
    assert context.name == "vision_encoder_ctx.onnx"
    assert context.is_relative_to(tmp_path / "cache")
    assert context.parent.is_dir()
    assert Path(options["trt_timing_cache_path"]) == context.parent.parent
    assert (options["trt_dump_ep_context_model"], options["trt_ep_context_embed_mode"]) == ("1", "0")
    assert "trt_engine_cache_path" not in options  # it would stand in the graph, where an absolute one is refused
    assert not [name for name in opened.options.entries if name.startswith("ep.context")]  # Python hands on none
    assert opened.options.entries["session.record_ep_graph_assignment_info"] == "1"
    check_canary(bundle, {"vision_encoder": session})


def test_single_precision_stays_single_precision(portable_of, use) -> None:
    runtime = use(TENSORRT, CPU)
    Session(portable_of("vlm", "fp32"), "embed_tokens", settings())
    assert options_of(runtime.opened[0])["trt_fp16_enable"] == "0"


@pytest.mark.parametrize(
    ("family", "recipe", "name", "words"),
    [
        ("vlm", "fp32", "vision_encoder", "attention in float32.*--target tensorrt --weights fp16.*pocketvlm compile"),
        ("vlm", "fp32", "decoder", "attention in float32"),
        ("clip", "int8", "text_encoder", "rows of 8 bits up before they are dequantized.*pocketvlm compile"),
    ],
)
def test_a_graph_that_a_provider_cannot_build_as_it_is_is_refused_by_name(
    portable_of, use, family: str, recipe: str, name: str, words: str
) -> None:
    bundle: Bundle = portable_of(family, recipe)
    runtime = use(TENSORRT, CPU)
    with pytest.raises(MachineError, match=rf"{name}\.onnx .*{words}"):
        Session(bundle, name, settings())
    assert runtime.opened == []


@pytest.mark.parametrize(
    ("attributes", "error", "words"),
    [
        ({"softcap": 30.0}, MachineError, "caps the scores"),
        ({"is_causal": 1}, BundleFormatError, "export the checkpoint again"),
    ],
)
def test_attention_that_tensorrt_reads_otherwise_is_refused_by_name(
    portable_of, tmp_path: Path, attributes: dict[str, Any], error: type[Exception], words: str
) -> None:
    bundle: Bundle = portable_of("clip", "fp16")
    model = open_graph(bundle.graph_path("text_encoder"))
    for node in model.graph:
        if node.op_type == "Attention":
            for key, value in attributes.items():
                node.attributes[key] = ir.convenience.convert_attribute(key, value)
    save_graph(model, tmp_path / "text_encoder.onnx")
    with pytest.raises(error, match=words):
        check_provider_graph(replace(bundle, directory=tmp_path), "text_encoder")


def test_a_decoder_has_a_cache_of_one_length_and_every_state_in_its_profile(portable_of, use) -> None:
    bundle: Bundle = portable_of("vlm", "fp16")
    runtime = use(TENSORRT, CPU)
    session = Session(bundle, "decoder", settings(max_sequences=3, context_tokens=48, prefill_chunk_tokens=16))
    (opened,) = runtime.opened
    assert opened.options.sizes == {ROWS: 48}
    options = options_of(opened)
    least, most = (_read(options[f"trt_profile_{word}_shapes"]) for word in ("min", "max"))
    assert set(least) == set(most) == {port.name for port in session.graph.inputs}
    hidden = bundle.manifest.decoder.hidden_size  # type: ignore[union-attr]
    assert (least["inputs_embeds"], most["inputs_embeds"]) == ([1, 1, hidden], [3, 16, hidden])
    state = bundle.manifest.states[0]
    assert least[state.input][1:] == most[state.input][1:]
    assert 48 in most[state.input]
    assert (least[state.input][0], most[state.input][0]) == (1, 3)


def test_the_recorded_run_of_a_decoder_writes_its_cache_where_it_lies(portable_of, use, monkeypatch) -> None:
    bundle: Bundle = portable_of("vlm", "fp16")
    use(TENSORRT, CPU)
    session = Session(bundle, "decoder", settings(context_tokens=48))
    bound: dict[str, int] = {}

    class Binding:
        def __init__(self, real: Any) -> None:
            self.real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def bind_ortvalue_input(self, name: str, value: Any) -> None:
            bound[name] = value.data_ptr()
            self.real.bind_ortvalue_input(name, value)

        def bind_ortvalue_output(self, name: str, value: Any) -> None:
            bound[name] = value.data_ptr()
            self.real.bind_ortvalue_output(name, value)

    graph, run = session.graph, session.graph.run_bound
    monkeypatch.setattr(in_place, "device_value", lambda array, device: device_value(array, "cpu"))
    monkeypatch.setattr(graph, "binding", lambda: Binding(graph._session.io_binding()))
    monkeypatch.setattr(graph, "run_bound", lambda binding: run(binding.real))
    check_canary(bundle, {"decoder": session})
    assert bound
    for state in bundle.manifest.states:
        assert bound[state.input] == bound[state.output]


def _read(shapes: str) -> dict[str, list[int]]:
    pairs = (each.rsplit(":", 1) for each in shapes.split(","))
    return {name: [int(size) for size in sizes.split("x")] for name, sizes in pairs}


def test_an_engine_that_an_earlier_session_left_is_opened_in_the_graphs_place(portable_of, use) -> None:
    bundle: Bundle = portable_of("clip", "fp16")
    runtime = use(TENSORRT, CPU)
    Session(bundle, "text_encoder", settings())
    context = Path(options_of(runtime.opened[0])["trt_ep_context_file_path"])
    context.write_bytes(b"left by the provider")
    runtime.graph = bundle.graph_path("text_encoder")
    session = Session(bundle, "text_encoder", settings())
    assert runtime.opened[1].path == str(context)
    assert not [name for name in options_of(runtime.opened[1]) if "context" in name]
    feeds = load_golden(bundle.path(GOLDEN))["text_encoder"].inputs
    usual = Session(bundle, "text_encoder", RuntimeSettings(intra_threads=1))
    np.testing.assert_array_equal(session.run(feeds)[session.output], usual.run(feeds)[usual.output])


def test_other_sizes_cards_drivers_and_versions_are_other_engines(portable_of, use, monkeypatch) -> None:
    bundle: Bundle = portable_of("clip", "fp16")
    runtime = use(TENSORRT, CPU)
    monkeypatch.setattr(provider_module, "_tensorrt_version", lambda: "10.15.1")
    Session(bundle, "text_encoder", settings())
    Session(bundle, "text_encoder", settings())
    Session(bundle, "text_encoder", settings(text_batch_rows=3))
    for card in (Card("Orin"), Card("Orin", "8.7"), Card("Orin", "8.7", "540.4")):
        monkeypatch.setattr(provider_module, "card_here", lambda card=card: card)
        Session(bundle, "text_encoder", settings())
    monkeypatch.setattr(provider_module, "_tensorrt_version", lambda: "10.16.0")
    Session(bundle, "text_encoder", settings())
    folders = [Path(options_of(opened)["trt_ep_context_file_path"]).parent for opened in runtime.opened]
    assert len(set(folders)) == len(folders) - 1


@pytest.mark.usefixtures("package")
def test_another_version_of_the_plug_in_is_another_engine(portable_of, use, monkeypatch) -> None:
    runtime = use(CPU)
    packages = {"onnxruntime_ep_nv_tensorrt_rtx": ["onnxruntime-ep-nv-tensorrt-rtx-cu12"]}
    monkeypatch.setattr(provider_module.metadata, "packages_distributions", lambda: packages)
    for version in ("0.5.0", "0.6.0"):
        monkeypatch.setattr(provider_module.metadata, "version", lambda package, version=version: version)
        Session(portable_of("clip", "fp16"), "text_encoder", settings("tensorrt-rtx"))
    assert len({options_of(opened)["nv_runtime_cache_path"] for opened in runtime.opened}) == 2


def test_a_node_that_the_engine_does_not_take_is_refused_shape_arithmetic_too(portable_of, use) -> None:
    use(TENSORRT, CPU, strays=(SimpleNamespace(op_type="Shape", domain="", name="s"),))
    with pytest.raises(MachineError, match=r"TensorrtExecutionProvider does not take 1 nodes.*1 x Shape.*compile"):
        Session(portable_of("clip", "fp16"), "text_encoder", settings())


def test_a_provider_whose_libraries_are_missing_is_told_as_that(portable_of, use) -> None:
    use(TENSORRT, CPU, loads=False)
    with pytest.raises(MachineError, match=r"has TensorrtExecutionProvider but could not load it.*libnvinfer"):
        Session(portable_of("clip", "fp16"), "text_encoder", settings())


@pytest.mark.parametrize(("flavour", "advice"), [("tensorrt", r"\[gpu\]"), ("tensorrt-rtx", "onnxruntime-ep-nv")])
def test_a_provider_that_is_not_there_is_told_with_what_brings_it(portable_of, use, flavour, advice) -> None:
    use("CUDAExecutionProvider", CPU)
    with pytest.raises(MachineError, match=advice):
        Session(portable_of("clip", "fp16"), "text_encoder", settings(flavour))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of TensorRT-RTX's provider, as far as it is asked."""
    made = SimpleNamespace(get_ep_name=lambda: TENSORRT_RTX, get_library_path=lambda: "/there/libprovider.so")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", made)


@pytest.mark.usefixtures("package")
def test_the_plug_in_is_registered_once_and_named_by_its_device(portable_of, use) -> None:
    runtime = use(CPU)
    bundle: Bundle = portable_of("clip", "fp16")
    for name in ("text_encoder", "vision_encoder"):
        Session(bundle, name, settings("tensorrt-rtx"))
    assert runtime.registered == {TENSORRT_RTX: "/there/libprovider.so"}
    for opened in runtime.opened:
        assert opened.providers == []
        assert opened.options.plugin is not None
        assert [device.ep_name for device in opened.options.plugin[0]] == [TENSORRT_RTX]
        options = options_of(opened)
        assert {name for name in options if name.startswith("trt")} == set()
        assert options["nv_profile_max_shapes"].count(":") == len(options["nv_profile_max_shapes"].split(","))
        assert options["nv_runtime_cache_path"] == str(Path(opened.options.entries["ep.context_file_path"]).parent)


@pytest.mark.usefixtures("package")
def test_a_decoder_wants_cudas_memory_for_its_cache_which_a_plug_in_beside_a_cpu_build_lacks(portable_of, use) -> None:
    use(CPU)
    with pytest.raises(MachineError, match=r"cache lies in CUDA's memory.*pocketvlm compile"):
        Session(portable_of("vlm", "fp32"), "decoder", settings("tensorrt-rtx"))


@pytest.mark.usefixtures("package")
def test_a_plug_in_without_a_card_is_told(portable_of, use) -> None:
    use(CPU, sees=False)
    with pytest.raises(MachineError, match=r"sees no card of compute capability 8\.6"):
        Session(portable_of("clip", "fp16"), "text_encoder", settings("tensorrt-rtx"))


def test_operators_that_tensorrt_lacks_are_refused_before_a_graph_is_opened(smolvlm_bundle: Path, portable_of) -> None:
    with pytest.raises(MachineError, match=r"contrib dialect.*--dialect portable"):
        check_target(open_bundle(smolvlm_bundle, verify=False, allow_ungated=True), settings())
    check_target(portable_of("clip", "fp16"), settings())


def test_chunks_shorter_than_the_recorded_run_leave_room_for_it(portable_of, use) -> None:
    bundle: Bundle = portable_of("vlm", "fp16")
    runtime = use(TENSORRT, CPU)
    Session(bundle, "decoder", settings(context_tokens=48, prefill_chunk_tokens=2))
    most = _read(options_of(runtime.opened[0])["trt_profile_max_shapes"])
    recorded = load_golden(bundle.path(GOLDEN))["decoder"].inputs["inputs_embeds"]
    assert most["inputs_embeds"][1] == recorded.shape[1] > 2
