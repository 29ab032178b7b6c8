"""Decoders with heads that attention can turn, and what they give on a prompt and on the step after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from bundle.manifest import TensorSpec
from export.config import DecoderConfig, ExpertsConfig
from export.decoders.causal import CausalDecoder
from export.decoders.llama import Llama
from export.decoders.llama_mote import LlamaMote
from export.graph import build_model
from export.nn.dialects import DIALECTS
from export.rope import RopeConfig
from export.vision_language import decoder_plan
from graphs.layers import find_linears
from graphs.store import open_graph, save_graph
from quant.calibration.statistics import InputStatistics

Arrays = dict[str, NDArray[Any]]
MAX_POSITIONS = 64
SEQUENCES, TOKENS, CAPACITY = 2, 5, 9
_WIDTH = 48
_SETTINGS: Mapping[str, Any] = {
    "vocab_size": 61,
    "hidden_size": _WIDTH,
    "intermediate_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_size": 16,
    "max_positions": MAX_POSITIONS,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope": RopeConfig("default", 10_000.0),
    "qkv_bias": False,
    "out_bias": False,
    "mlp_bias": False,
}


@pytest.fixture(scope="session")
def decoder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ir.Model]:
    """Return a fresh decoder of random weights; settings other than usual are those of `DecoderConfig`."""
    made: dict[str, Path] = {}

    def decoder(**changes: Any) -> ir.Model:
        key = repr(sorted(changes.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("decoder") / "decoder.onnx"
            save_graph(_decoder(DecoderConfig(**{**_SETTINGS, **changes})), made[key])
        return open_graph(made[key])

    return decoder


def _decoder(config: DecoderConfig) -> ir.Model:
    dialect, rng = DIALECTS["contrib"](), np.random.default_rng(3)
    embeds = TensorSpec(name="inputs_embeds", dtype="float32", shape=("B", "T", config.hidden_size))
    decoder = Llama(config) if config.experts is None else LlamaMote(config)
    plan = decoder_plan(decoder, embeds, CausalDecoder(decoder, dialect, "model"))
    model = build_model("decoder", plan, dialect)
    for value in model.graph.initializers.values():
        if value.const_value is None:
            shape = tuple(int(size) for size in value.shape or ())
            scale = 0.1 if len(shape) == 1 else 0.3
            numbers = rng.normal(size=shape, scale=scale).astype(np.float32) + (str(value.name).endswith("norm.weight"))
            value.const_value = ir.tensor(numbers.astype(np.float32), name=value.name)
    return model


@pytest.fixture(scope="session")
def experts() -> ExpertsConfig:
    return ExpertsConfig(num=4, width=32, is_ternary=False)


@pytest.fixture
def peaks_of(rng: np.random.Generator) -> Callable[[ir.Model], dict[str, InputStatistics]]:
    """Return made-up statistics, equal for layers that read one input, by weight."""
    by_input: dict[ir.Value, InputStatistics] = {}

    def peaks(model: ir.Model) -> dict[str, InputStatistics]:
        found = {}
        for linear in find_linears(model.graph):
            if linear.input not in by_input:
                x = rng.standard_normal((64, linear.num_inputs)).astype(np.float32)
                by_input[linear.input] = InputStatistics(64, np.abs(x).max(axis=0), x.T @ x / np.float32(64))
            found[linear.name] = by_input[linear.input]
        return found

    return peaks


@pytest.fixture
def prompt_and_step(tmp_path: Path) -> Callable[..., list[NDArray[Any]]]:
    """Return what a decoder gives on a prompt and then on one token a sequence, at places that are not their rows."""

    def run(
        model: ir.Model, shift: int = 7, only: int | None = None, places: NDArray[np.int64] | None = None
    ) -> list[NDArray[Any]]:
        kept = slice(None) if only is None else slice(only, only + 1)
        rng = np.random.default_rng(11)
        save_graph(model, tmp_path / "run.onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = ort.InferenceSession(tmp_path / "run.onnx", options, providers=["CPUExecutionProvider"])
        names = [port.name for port in session.get_outputs()]
        states = {port.name for port in session.get_inputs() if port.name.startswith("past_key_values")}
        shapes = {port.name: port.shape for port in session.get_inputs()}
        cache = {name: np.zeros((SEQUENCES, shapes[name][1], CAPACITY, shapes[name][3]), np.float32) for name in states}
        found = []
        for past, count in ((0, TOKENS), (TOKENS, 1)):
            feeds = {
                "inputs_embeds": rng.standard_normal((SEQUENCES, count, shapes["inputs_embeds"][2])).astype(np.float32),
                "position_ids": np.tile(np.arange(past, past + count) + shift, (SEQUENCES, 1)),
                "past_lengths": np.full((shapes["past_lengths"][0], SEQUENCES), past),
                "logits_indices": np.full((SEQUENCES, 1), count - 1),
                **cache,
            }
            if places is not None and not past:
                feeds["position_ids"] = places
            at = {"past_lengths": (slice(None), kept)}
            feeds = {
                name: array if name in cache and past else array[at.get(name, kept)] for name, array in feeds.items()
            }
            given = dict(zip(names, session.run(None, feeds), strict=True))
            cache = {name: given[name.replace("past_key_values", "present")] for name in states}
            found += [given["logits"], *(cache[name] for name in sorted(cache))]
        return found

    return run
