"""Encoders by either engine: OpenVINO's answers beside ONNX Runtime's, and what "auto" chooses."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.directory import Bundle, open_bundle
from bundle.errors import BundleFileError, MachineError, SignatureError
from bundle.golden import GOLDEN
from bundle.image_tokens import TOWER_OUTPUTS
from quant.quantizer import quantize_bundle
from runtime import encoder as module
from runtime.canary import check_canary, cosine
from runtime.encoder import Encoder, OpenVinoEncoder, Trial, open_encoder, open_graph
from runtime.encoders import see_tiles, split_seen
from runtime.graph import Array, Graph
from runtime.openvino_graph import OpenVinoGraph
from runtime.session import Session
from runtime.settings import EncoderRuntime, RuntimeSettings
from runtime.turns import Quartiles

BundleOf = Callable[..., Path]


def asking_for(engine: EncoderRuntime) -> RuntimeSettings:
    return RuntimeSettings(intra_threads=1, encoder_runtime=engine)


@pytest.fixture(scope="module")
def int8(bundle_of: BundleOf, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("int8") / "bundle"
    quantize_bundle(bundle_of("smolvlm"), folder, weights="int8-rtn")
    return open_bundle(folder, allow_ungated=True)


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("smolvlm", "vision_encoder"),
        ("siglip", "vision_encoder"),
        ("siglip", "text_encoder"),
        ("clip", "vision_encoder"),
        ("clip", "text_encoder"),
    ],
)
def test_openvino_computes_what_was_recorded_at_export(
    bundle_of: BundleOf, family: str, name: Any, dialect: str
) -> None:
    """The graphs are read as they are, in both dialects; float32 ones pass the canary of float32."""
    pytest.importorskip("openvino")
    bundle = open_bundle(bundle_of(family, dialect))
    found = open_encoder(bundle, name, asking_for("openvino"))
    assert isinstance(found, OpenVinoEncoder)
    check_canary(bundle, {name: found})


def test_openvino_reads_an_int8_tower_as_it_is_and_batch_mates_change_nothing(int8: Bundle) -> None:
    """On a processor with bfloat16 its attention is rounded to 8 bits: 1e-3 of a cosine is far more than that."""
    pytest.importorskip("openvino")
    usual, other = (open_encoder(int8, "vision_encoder", asking_for(each)) for each in ("onnxruntime", "openvino"))
    pixels = np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32)
    together = other.run({"pixel_values": pixels})[other.output]
    assert cosine(usual.run({"pixel_values": pixels})[usual.output], together) > 0.999
    for place, image in enumerate(pixels):
        assert np.array_equal(other.run({"pixel_values": image[None]})[other.output][0], together[place])


def test_the_arrays_of_a_run_are_new(int8: Bundle) -> None:
    pytest.importorskip("openvino")
    encoder = open_encoder(int8, "vision_encoder", asking_for("openvino"))
    first = encoder.run({"pixel_values": np.zeros((1, 3, 32, 32), np.float32)})[encoder.output]
    kept = first.copy()
    encoder.run({"pixel_values": np.ones((1, 3, 32, 32), np.float32)})
    assert np.array_equal(first, kept)


OPENS_IT = """
import sys
from pathlib import Path
from runtime.openvino_graph import OpenVinoGraph
from runtime.settings import RuntimeSettings
OpenVinoGraph(Path(sys.argv[1]), RuntimeSettings(), is_exact=True)
"""
TELLS = """
import sys
print([name for name in sys.modules if name.startswith("openvino_telemetry.")] != [])
"""


@pytest.mark.parametrize(("code", "tells"), [(OPENS_IT, False), ("import openvino", True)], ids=["ours", "its own way"])
def test_openvino_tells_nobody_that_it_was_used(bundle_of: BundleOf, tmp_path: Path, code: str, tells: bool) -> None:
    """Its package for telemetry is loaded when it is imported by itself, and may keep an id under the user's home."""
    pytest.importorskip("openvino_telemetry")
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(Path(module.__file__).parents[1])}
    command = [sys.executable, "-c", f"{code}\n{TELLS}", str(bundle_of("siglip") / "text_encoder.onnx")]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(tells)]
    assert tells or not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_file_that_openvino_cannot_read_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / "vision_encoder.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(BundleFileError, match=r"vision_encoder\.onnx: OpenVINO .* cannot read it"):
        OpenVinoGraph(path, RuntimeSettings(), is_exact=True)


def test_openvino_that_is_absent_is_told_with_what_installs_it(
    bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MachineError, match=r"\[openvino\].*encoder_runtime"):
        open_encoder(open_bundle(bundle_of("siglip")), "text_encoder", asking_for("openvino"))


class Other:
    """Stands for OpenVINO: ONNX Runtime with noise relative to the mean magnitude of its outputs."""

    noise = 0.0
    opened = 0

    def __init__(self, path: Path, settings: RuntimeSettings, *, is_exact: bool, outputs: Sequence[str]) -> None:
        self._graph = Graph(path, settings)
        self.inputs = self._graph.inputs
        self.outputs = tuple(port for port in self._graph.outputs if port.name in outputs)
        self.optional_inputs = self._graph.optional_inputs
        type(self).opened += 1

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        found = self._graph.run(feeds, outputs)
        draw = np.random.default_rng(0).standard_normal
        return {
            name: (array + self.noise * np.abs(array).mean() * draw(array.shape)).astype(array.dtype)
            for name, array in found.items()
        }


class Broken(Other):
    def __init__(self, path: Path, settings: RuntimeSettings, *, is_exact: bool, outputs: Sequence[str]) -> None:
        raise MachineError("no such instruction")


def choose(patch: pytest.MonkeyPatch, bundle: Bundle, other: type[Other], times_ms: dict[str, float]) -> Encoder:
    """Return what "auto" opens where the two engines take these times."""
    patch.setattr(module, "has_openvino", lambda: True)
    patch.setattr(module, "OpenVinoGraph", other)
    patch.setattr(module, "milliseconds_of", lambda work: times_ms[engine_of(work.func.__self__)])
    return open_encoder(bundle, "vision_encoder", asking_for("auto"))


def engine_of(encoder: Encoder) -> str:
    return "OpenVINO" if isinstance(encoder, OpenVinoEncoder) else "ONNX Runtime"


FASTER = {"OpenVINO": 5.0, "ONNX Runtime": 10.0}
SLOWER = {"OpenVINO": 9.8, "ONNX Runtime": 10.0}


@pytest.mark.parametrize(("times_ms", "chosen"), [(FASTER, "OpenVINO"), (SLOWER, "ONNX Runtime")])
def test_auto_takes_the_engine_that_is_clearly_faster_and_says_so(
    bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times_ms: Any, chosen: str
) -> None:
    caplog.set_level(logging.INFO, module.__name__)
    found = choose(monkeypatch, open_bundle(bundle_of("smolvlm")), type("Same", (Other,), {}), times_ms)
    assert engine_of(found) == chosen
    assert f"{chosen} runs it" in caplog.text


def test_auto_takes_no_faster_engine_that_computes_something_else(
    bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch, int8: Bundle
) -> None:
    """A float32 encoder is held to the canary; a quantized one may be little further from its parent."""
    far, near = (type("Noisy", (Other,), {"noise": noise}) for noise in (0.05, 0.01))
    assert engine_of(choose(monkeypatch, open_bundle(bundle_of("smolvlm")), near, FASTER)) == "ONNX Runtime"
    assert engine_of(choose(monkeypatch, int8, far, FASTER)) == "ONNX Runtime"
    assert engine_of(choose(monkeypatch, int8, near, FASTER)) == "OpenVINO"


def test_auto_takes_onnx_runtime_where_the_other_cannot_be_opened(
    bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, module.__name__)
    found = choose(monkeypatch, open_bundle(bundle_of("smolvlm")), Broken, FASTER)
    assert engine_of(found) == "ONNX Runtime"
    assert "no such instruction" in caplog.text


def test_auto_compares_nothing_where_nothing_was_recorded(bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_bundle(bundle_of("smolvlm"))
    files = {name: record for name, record in whole.manifest.files.items() if name != GOLDEN}
    bare = Bundle(whole.directory, whole.manifest.model_copy(update={"files": files}))
    other = type("Never", (Other,), {})
    assert engine_of(choose(monkeypatch, bare, other, FASTER)) == "ONNX Runtime"
    assert other.opened == 0


def test_a_gpu_keeps_its_encoders(bundle_of: BundleOf) -> None:
    settings = RuntimeSettings(provider="cuda", encoder_runtime="openvino")
    with pytest.raises(MachineError, match="CUDAExecutionProvider"):
        open_encoder(open_bundle(bundle_of("siglip")), "text_encoder", settings)


def test_of_all_graphs_encoders_alone_follow_the_setting(bundle_of: BundleOf) -> None:
    pytest.importorskip("openvino")
    bundle, settings = open_bundle(bundle_of("smolvlm")), asking_for("openvino")
    assert isinstance(open_graph(bundle, "decoder", settings), Session)
    assert isinstance(open_graph(bundle, "vision_encoder", settings), OpenVinoEncoder)


@pytest.mark.parametrize(
    ("distance", "usual", "median", "high", "is_won"),
    [
        (0.0024, 0.002, 0.7, 0.9, True),
        (0.0026, 0.002, 0.7, 0.9, False),
        (0.001, 0.002, 0.7, 0.9, True),
        (0.0, 0.0, 0.97, 0.99, False),
        (0.0, 0.0, 0.9, 1.05, False),
        (float("nan"), 0.0, 0.7, 0.9, False),
    ],
)
def test_a_trial_is_won_by_who_is_near_and_surely_faster(
    distance: float, usual: float, median: float, high: float, is_won: bool
) -> None:
    assert Trial(distance, usual, Quartiles(median - 0.01, median, high)).is_won is is_won


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_what_the_tower_looked_at_comes_where_it_is_asked_for(bundle_of: BundleOf, engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    bundle = open_bundle(bundle_of("smolvlm"))
    encoder = open_encoder(bundle, "vision_encoder", asking_for(engine))
    pixels = {"pixel_values": np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)}
    assert list(encoder.run(pixels)) == ["image_features"]
    whole = encoder.run(pixels, TOWER_OUTPUTS)
    received, keys = (whole[name] for name in TOWER_OUTPUTS)
    np.testing.assert_allclose(received.sum(axis=1), 1, atol=1e-5)
    array = see_tiles(encoder, pixels["pixel_values"], 2)
    features, tower = split_seen(encoder, array)
    np.testing.assert_array_equal(features, whole["image_features"])
    told = np.concatenate([received[..., None], keys], axis=-1)
    np.testing.assert_allclose(tower, told, rtol=1e-5)  # two runs: attention adds up otherwise for another number
    with pytest.raises(SignatureError, match="has no optional output squares"):
        encoder.run(pixels, ["squares"])


def test_openvino_computes_no_output_that_nobody_asked_for(bundle_of: BundleOf) -> None:
    pytest.importorskip("openvino")
    encoder = OpenVinoEncoder(open_bundle(bundle_of("smolvlm")), "vision_encoder", asking_for("openvino"))
    assert [port.name for port in encoder.graph.outputs] == ["image_features"]
