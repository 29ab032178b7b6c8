"""Engines behind the verbs of a session, against ONNX Runtime; the stand-in runs them, for no card of ours can."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import runtime.tensorrt.engine_graph as engine_graph_module
import runtime.tensorrt.library as library_module
from bundle.directory import Bundle
from bundle.engines import EngineIndex
from bundle.errors import BundleFileError, GoldenError, ImageError, MachineError
from bundle.golden import GOLDEN, load_golden
from runtime.cache_shape import cache_shape
from runtime.canary import check_canary
from runtime.decoder import Decoder, TokenGraphs
from runtime.feeds import TokenRun
from runtime.fixed_run import device_value
from runtime.session import Session
from runtime.settings import RuntimeSettings
from runtime.tensorrt.compiler import Form, Job, compile_bundle
from runtime.tensorrt.engine import Engine
from runtime.tensorrt.engine_graph import EngineGraph
from runtime.tensorrt.library import Flavour, open_library
from runtime.tensorrt.profiles import Limits

ROWS = 64
ON_HOST = RuntimeSettings(intra_threads=1)
Engines = tuple[Path, EngineIndex]


@pytest.fixture(autouse=True)
def _no_device(monkeypatch: pytest.MonkeyPatch, stand_in: ModuleType, tmp_path: Path) -> None:
    """Both libraries are the stand-in, and a device's memory is the host's."""
    monkeypatch.setattr(library_module, "_proper", lambda: stand_in)
    monkeypatch.setattr(library_module, "_rtx", lambda: stand_in)
    monkeypatch.setattr(engine_graph_module, "device_value", lambda array, device: device_value(array, "cpu"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def engines_of(standard: Form, tmp_path: Path) -> Callable[..., Engines]:
    def engines(bundle: Bundle, flavour: Flavour = "tensorrt", max_batch: int = 3) -> Engines:
        limits = Limits(cache_rows=ROWS, max_batch=max_batch, max_prompt_tokens=16, max_images=3)
        return tmp_path / flavour, compile_bundle(Job(bundle, tmp_path / flavour, flavour, standard, limits), print)

    return engines


def opened(bundle: Bundle, engines: Engines, name: str) -> Engine:
    record = engines[1].engines[name]
    return Engine(open_library(record.key.builder), engines[0] / record.file, record)


def on_device(folder: Path) -> RuntimeSettings:
    return RuntimeSettings(provider="cuda", intra_threads=1, engines=(folder,))


@pytest.mark.parametrize(("family", "recipe"), [("vlm", "fp16"), ("vlm", "int8"), ("clip", "fp32"), ("siglip", "fp16")])
def test_encoders_and_tables_give_what_onnx_runtime_gives(
    portable_of: Callable[..., Bundle], engines_of: Callable[..., Engines], family: str, recipe: str
) -> None:
    bundle = portable_of(family, recipe)
    folder, _ = engines_of(bundle)
    recordings = load_golden(bundle.path(GOLDEN))
    for name, component in bundle.manifest.components.items():
        if component.role == "decoder":
            continue
        session, usual = Session(bundle, name, on_device(folder)), Session(bundle, name, ON_HOST)
        feeds = recordings[component.role].inputs
        found, expected = session.run(feeds), usual.run(feeds)
        # a table that is dequantized before the look-up rounds to float16 there: 11 bits
        np.testing.assert_allclose(found[session.output], expected[usual.output], rtol=1e-3, atol=1e-6)
        check_canary(bundle, {name: session})
        assert session.component.optional_outputs == ()


@pytest.mark.parametrize("recipe", ["fp32", "int8"])
def test_the_recorded_run_is_replayed_on_a_decoder_of_one_cache_length(
    portable_of: Callable[..., Bundle], engines_of: Callable[..., Engines], recipe: str
) -> None:
    bundle = portable_of("vlm", recipe)
    session = Session(bundle, "decoder", on_device(engines_of(bundle)[0]))
    check_canary(bundle, {"decoder": session})
    engine = session.graph

    class Wrong(EngineGraph):
        def run(self, feeds: Any, outputs: Any = None) -> Any:
            return {name: -array for name, array in engine.run(feeds, outputs).items()}

    session.graph = Wrong(engine._engine, "cuda")
    with pytest.raises(GoldenError):
        check_canary(bundle, {"decoder": session})


def test_an_image_of_a_size_that_the_engine_was_not_built_for_is_refused_as_an_image(
    portable_of: Callable[..., Bundle], engines_of: Callable[..., Engines]
) -> None:
    bundle = portable_of("clip")
    engine = opened(bundle, engines_of(bundle), "vision_encoder")
    _, _, height, width = engine.inputs[0].shape
    assert engine.profile_of({"pixel_values": (2, 3, height, width)}) == 0
    with pytest.raises(ImageError, match=rf"becomes {width + 8} x {height} pixels.*{width} x {height} to .*Crop it"):
        engine.profile_of({"pixel_values": (2, 3, height, width + 8)})
    with pytest.raises(MachineError, match="--max-images"):
        engine.profile_of({"pixel_values": (9, 3, height, width)})


def runs(past: list[int], num_tokens: int) -> list[TokenRun]:
    ids = np.arange(num_tokens) * 7 % 250
    return [TokenRun(ids + at, np.arange(n, n + num_tokens), [n], [num_tokens - 1]) for at, n in enumerate(past)]


STEPS = [
    ("prompt", 0, [0], 9),
    ("prompt", 1, [0], 16),
    ("prompt", 0, [9], 4),
    ("step", 0, [13, 16], 1),
    ("step", 0, [14, 17, 0], 1),
    ("step", 1, [18], 1),
]


@pytest.mark.parametrize("recipe", ["fp32", "fp16", "int4"])
def test_a_decoder_on_an_engine_gives_the_same_logits_step_by_step(
    portable_of: Callable[..., Bundle], engines_of: Callable[..., Engines], recipe: str
) -> None:
    bundle = portable_of("vlm", recipe)
    shape = cache_shape(bundle.manifest, 4, ROWS)
    usual, graphs = Decoder(TokenGraphs(bundle, ON_HOST), shape), TokenGraphs(bundle, ON_HOST)
    graphs.of_phase("step").graph = EngineGraph(opened(bundle, engines_of(bundle), "decoder"), "cpu")
    decoder = Decoder(graphs, shape)
    for phase, first_slot, past, num_tokens in STEPS:
        step = runs(past, num_tokens)
        found, expected = decoder.run(phase, first_slot, step), usual.run(phase, first_slot, step)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_cache_on_the_device_is_written_where_it_lies(
    portable_of: Callable[..., Bundle], engines_of: Callable[..., Engines]
) -> None:
    bundle = portable_of("vlm", "fp16")
    graph = EngineGraph(opened(bundle, engines_of(bundle), "decoder"), "cuda")
    states = {state.input: np.zeros(state.sizes(1, ROWS), state.dtype) for state in bundle.manifest.states}
    feeds: dict[str, NDArray[Any]] = {
        "inputs_embeds": np.ones((1, 5, 64), np.float32),
        "position_ids": np.arange(5)[None],
        "past_lengths": np.zeros((1, 1), np.int64),
        "logits_indices": np.array([[4]]),
    }
    logits = np.zeros((1, 1, bundle.manifest.decoder.vocab_size), np.float32)
    binding = graph.binding()
    for state in bundle.manifest.states:
        place = "cuda", 0, np.float16, states[state.input].shape, states[state.input].ctypes.data
        binding.bind_input(state.input, *place)
        binding.bind_output(state.output, *place)
    for name, array in feeds.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
    graph.run_bound(binding)
    usual = Session(bundle, "decoder", ON_HOST)
    empty = {state.input: np.zeros(state.sizes(1, ROWS), state.dtype) for state in bundle.manifest.states}
    expected = usual.run(feeds | empty)
    np.testing.assert_allclose(logits, expected["logits"], rtol=1e-5, atol=1e-5)
    for state in bundle.manifest.states:
        assert np.any(states[state.input][:, :, :5])
        np.testing.assert_array_equal(states[state.input], expected[state.output])


@pytest.mark.parametrize("staged", [64, 2])
def test_a_cache_that_the_host_gives_is_staged_once_for_both_its_sides(
    portable_of: Callable[..., Bundle], engines_of: Callable[..., Engines], monkeypatch, staged: int
) -> None:
    """Fewer places than a run has: none is given away before the run is over."""
    monkeypatch.setattr(engine_graph_module, "_MOST_STAGED", staged)
    bundle = portable_of("vlm", "fp16")
    engine = opened(bundle, engines_of(bundle), "decoder")
    states = {state.output: state.input for state in bundle.manifest.states}
    assert engine.aliases == states
    made: list[weakref.ref[Any]] = []
    told: list[Mapping[str, int]] = []
    stage, run = EngineGraph._staging, engine.run

    def staging(self: EngineGraph, *wanted: Any) -> Any:
        value = stage(self, *wanted)
        made.append(weakref.ref(value))
        return value

    def running(profile: int, addresses: Mapping[str, int]) -> None:
        told.append(addresses)
        assert all(reference() is not None for reference in made), "memory of this run was given away"
        run(profile, addresses)

    monkeypatch.setattr(EngineGraph, "_staging", staging)
    monkeypatch.setattr(engine, "run", running)
    session = Session(bundle, "decoder", ON_HOST)
    session.graph = EngineGraph(engine, "cuda")
    check_canary(bundle, {"decoder": session})
    (addresses,) = told
    assert {output: addresses[output] for output in states} == {o: addresses[i] for o, i in states.items()}


def test_a_cache_that_is_bound_apart_from_its_input_is_refused(
    portable_of: Callable[..., Bundle], engines_of: Callable[..., Engines]
) -> None:
    bundle = portable_of("vlm", "fp16")
    graph = EngineGraph(opened(bundle, engines_of(bundle), "decoder"), "cuda")
    binding, state = graph.binding(), bundle.manifest.states[0]
    shape = state.sizes(1, ROWS)
    array, other = np.zeros(shape, state.dtype), np.zeros(shape, state.dtype)
    for port in graph.inputs:
        sizes = tuple(1 if size is None else size for size in port.shape)
        given = array if port.name == state.input else np.zeros(sizes, port.dtype)
        binding.bind_input(port.name, "cpu", 0, given.dtype, given.shape, given.ctypes.data)
    for port in graph.outputs:
        binding.bind_output(port.name, "cpu")
    binding.bind_output(state.output, "cuda", 0, other.dtype, shape, other.ctypes.data)
    with pytest.raises(MachineError, match=rf"{state.output} is written where {state.input} lies; bind both"):
        graph.run_bound(binding)


def test_steps_take_the_profile_of_steps(
    portable_of: Callable[..., Bundle], engines_of: Callable[..., Engines]
) -> None:
    bundle = portable_of("vlm", "fp16")
    engine = opened(bundle, engines_of(bundle), "decoder")
    prompt, step = ({name: sizes[2] for name, sizes in profile.items()} for profile in engine._record.key.profiles)
    assert (engine.profile_of(prompt), engine.profile_of(step)) == (0, 1)


def test_a_run_beyond_every_profile_says_what_to_set(
    portable_of: Callable[..., Bundle], engines_of: Callable[..., Engines]
) -> None:
    bundle = portable_of("clip", "fp32")
    folder, _ = engines_of(bundle)
    session = Session(bundle, "vision_encoder", on_device(folder))
    tiles = np.zeros((4, 3, 32, 32), np.float32)
    with pytest.raises(
        MachineError, match=r"pixel_values \[4, 3, 32, 32\]; its largest is pixel_values \[3, .*max-images"
    ):
        session.run({"pixel_values": tiles})


def test_an_engine_of_another_version_or_card_is_refused_in_one_line(
    portable_of: Callable[..., Bundle], engines_of: Callable[..., Engines], stand_in: ModuleType, monkeypatch
) -> None:
    bundle = portable_of("clip", "fp32")
    folder, index = engines_of(bundle)
    record = index.engines["text_encoder"]
    library = open_library("tensorrt")
    (folder / record.file).write_bytes(b"of another card")
    with pytest.raises(MachineError) as refused:
        Engine(library, folder / record.file, record)
    assert "not compatible with this device. It was built for" in str(refused.value)
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(stand_in, "__version__", "11.0.0.1")
    with pytest.raises(MachineError, match=r"was built by TensorRT 10\.16\.1\.11, and here is 11\.0\.0\.1"):
        Engine(library, folder / record.file, record)


def test_a_stale_engine_is_not_opened(portable_of: Callable[..., Bundle], engines_of: Callable[..., Engines]) -> None:
    bundle = portable_of("clip", "fp32")
    folder, _ = engines_of(bundle)
    other = replace(
        portable_of("clip", "fp16"),
        manifest=portable_of("clip", "fp16").manifest.model_copy(update={"name": bundle.name}),
    )
    with pytest.raises(BundleFileError, match="is stale"):
        Session(other, "text_encoder", on_device(folder))


def test_kernels_that_the_card_compiled_are_kept_for_the_next_start(
    portable_of: Callable[..., Bundle], engines_of: Callable[..., Engines], tmp_path: Path, caplog
) -> None:
    bundle = portable_of("clip", "fp32")
    folder, index = engines_of(bundle, "tensorrt-rtx")
    feeds = load_golden(bundle.path(GOLDEN))["text_encoder"].inputs
    Session(bundle, "text_encoder", on_device(folder)).run(feeds)
    kept = tmp_path / "cache" / "pocketvlm" / "kernels" / f"{index.engines['text_encoder'].contents.sha256}.cache"
    assert kept.read_bytes() == b"kernels of the stand-in"
    kept.write_bytes(b"kernels of an earlier start")
    Session(bundle, "text_encoder", on_device(folder)).run(feeds)
    assert kept.read_bytes() == b"kernels of an earlier start"
    kept.write_bytes(b"of another card")
    with caplog.at_level("INFO"):
        Session(bundle, "text_encoder", on_device(folder)).run(feeds)
    assert "compiled anew" in caplog.text


def test_kernels_that_a_first_run_wants_are_kept_too(
    portable_of: Callable[..., Bundle],
    engines_of: Callable[..., Engines],
    stand_in: ModuleType,
    tmp_path: Path,
    monkeypatch,
) -> None:
    bundle = portable_of("clip", "fp32")
    folder, index = engines_of(bundle, "tensorrt-rtx")
    kept = tmp_path / "cache" / "pocketvlm" / "kernels" / f"{index.engines['text_encoder'].contents.sha256}.cache"
    feeds = load_golden(bundle.path(GOLDEN))["text_encoder"].inputs
    compiled, execute = [b"kernels of a context"], stand_in.IExecutionContext.execute_async_v3
    monkeypatch.setattr(stand_in.IRuntimeCache, "serialize", lambda self: compiled[-1])

    def running(self: Any, stream: int) -> bool:
        compiled.append(b"kernels of a run %d" % len(compiled))
        return bool(execute(self, stream))

    monkeypatch.setattr(stand_in.IExecutionContext, "execute_async_v3", running)
    session = Session(bundle, "text_encoder", on_device(folder))
    for _ in range(3):
        session.run(feeds)
    assert kept.read_bytes() == b"kernels of a run 1"  # the first: later ones are not written again


def test_on_a_cpu_engines_are_left_alone(
    portable_of: Callable[..., Bundle], engines_of: Callable[..., Engines]
) -> None:
    bundle = portable_of("clip", "fp32")
    settings = ON_HOST.model_copy(update={"engines": (engines_of(bundle)[0],)})
    assert not isinstance(Session(bundle, "text_encoder", settings).graph, EngineGraph)


def test_what_is_not_bound_is_named(portable_of: Callable[..., Bundle], engines_of: Callable[..., Engines]) -> None:
    bundle = portable_of("clip", "fp32")
    graph = EngineGraph(opened(bundle, engines_of(bundle), "vision_encoder"), "cuda")
    with pytest.raises(MachineError, match="image_embeds, pixel_values is bound to nothing"):
        graph.run_bound(graph.binding())
