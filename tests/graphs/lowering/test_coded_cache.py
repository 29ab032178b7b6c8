"""Decoders over caches of codes, beside a decoder over floats that rounds its keys and values before it caches them.

The oracle knows no code: Div, Round, Clip and Mul stand before the attention of the graph as it was exported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from bundle.states import CacheScheme, State
from graphs.lowering.coded_cache import CodedCache
from graphs.lowering.decoder import lower_decoder
from graphs.store import add_initializer, save_graph
from runtime.cache_codes import decode

MAX_POSITIONS, CAPACITY, TOKENS = 64, 24, 12
MOST = {"int8": 127, "int4": 7}
PLACES = np.array([3, 4, 5, 9, 10, 20, 21, 22, 30, 31, 40, 41, 50])
"""Of the tokens: with gaps, and not their rows."""


def states_of(model: ir.Model) -> list[State]:
    pasts = [value for value in model.graph.inputs if str(value.name).startswith("past_key_values")]
    shapes = [tuple(size if isinstance(size, int) else str(size.value) for size in value.shape) for value in pasts]
    return [
        State(input=name, output=name.replace("past_key_values", "present"), dtype="float32", shape=shape, group=0)
        for name, shape in zip((str(value.name) for value in pasts), shapes, strict=True)
    ]


def cache_of(model: ir.Model, scheme: CacheScheme) -> CodedCache:
    """Return scales of which every channel has its own; some clip."""
    rng = np.random.default_rng(4)
    scales = {each.input: rng.uniform(1, 6, each.scale_shape) / MOST[scheme] for each in states_of(model)}
    return CodedCache(scheme, {name: array.astype(np.float32) for name, array in scales.items()})


def round_keys_and_values(model: ir.Model, cache: CodedCache) -> None:
    """Put rounding before every attention, in place."""
    most = MOST[cache.scheme]
    bounds = [add_initializer(model.graph, f"bound.{n}", np.array(n, np.float32)) for n in (-most - 1, most)]
    for node in [node for node in model.graph if node.op_type == "GroupQueryAttention"]:
        for at, past in ((1, 3), (2, 4)):
            scales = cache.scales[node.inputs[past].name].ravel()
            scale = add_initializer(model.graph, f"{node.inputs[past].name}.oracle", scales)
            value = node.inputs[at]
            for op_type, others in (("Div", [scale]), ("Round", []), ("Clip", bounds), ("Mul", [scale])):
                name = f"{node.name}.{at}.{op_type}"
                made = ir.node(op_type, [value, *others], outputs=[ir.Value(name=name)], name=name)
                model.graph.insert_before(node, made)
                value = made.outputs[0]
            node.replace_input_with(at, value)


class Decoder:
    """A decoder opened, and its cache."""

    def __init__(self, model: ir.Model, states: list[State], path: Path, sequences: int = 1) -> None:
        save_graph(model, path)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.states = states
        self.cache = {each.input: np.zeros(each.sizes(sequences, CAPACITY), each.dtype) for each in states}
        self.width = next(port.shape[2] for port in self.session.get_inputs() if port.name == "inputs_embeds")

    def run(self, embeds: np.ndarray, past: int, places: np.ndarray) -> np.ndarray:
        """Return the logits of every token of a run."""
        sequences, count, _ = embeds.shape
        feeds = {
            "inputs_embeds": embeds,
            "position_ids": np.tile(places, (sequences, 1)),
            "past_lengths": np.full((1, sequences), past),
            "logits_indices": np.tile(np.arange(count), (sequences, 1)),
            **self.cache,
        }
        names = [port.name for port in self.session.get_outputs()]
        given = dict(zip(names, self.session.run(None, feeds), strict=True))
        self.cache = {state.input: given[state.output] for state in self.states}
        return given["logits"]


@pytest.fixture
def pair(decoder_of, tmp_path: Path) -> Callable[..., tuple[Decoder, Decoder]]:
    """Return a decoder over codes, and the one that rounds."""

    def make(scheme: CacheScheme, phase: str, sequences: int = 1, **changes: Any) -> tuple[Decoder, Decoder]:
        model, oracle = decoder_of(**changes), decoder_of(**changes)
        cache, states = cache_of(model, scheme), states_of(model)
        round_keys_and_values(oracle, cache)
        lower_decoder(model, MAX_POSITIONS, phase, cache)
        coded = [each.coded(scheme) for each in states]
        return (
            Decoder(model, coded, tmp_path / "coded.onnx", sequences),
            Decoder(oracle, states, tmp_path / "oracle.onnx", sequences),
        )

    return make


def embeds_of(sequences: int = 1) -> np.ndarray:
    rng = np.random.default_rng(11)
    return rng.standard_normal((sequences, TOKENS + 1, 48)).astype(np.float32)


def assert_rows_agree(coded: Decoder, oracle: Decoder, cache: CodedCache, num_rows: int) -> None:
    """Codes must stand for the oracle's rows, one step apart where a number lies between two of them, and seldom."""
    for state in coded.states:
        scales = cache.scales[state.input][:, None]
        wanted = oracle.cache[state.input][:, :, :num_rows]
        found = decode(coded.cache[state.input], scales, state.scheme)[:, :, :num_rows]
        off = np.abs(found - wanted) / scales
        assert off.max() < 1.01
        assert (off > 0.01).mean() < 0.002


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("cuts", [(), (4,), (3, 8, 9)], ids=str)
@pytest.mark.parametrize("phase", ["any", "prompt"])
def test_a_prompt_and_a_step_read_rounded_rows_wherever_the_prompt_was_cut(
    scheme: CacheScheme, cuts: tuple[int, ...], phase: str, pair, decoder_of
) -> None:
    coded, oracle = pair(scheme, phase, qkv_bias=True)
    tokens = embeds_of()
    for start, end in zip([0, *cuts, TOKENS], [*cuts, TOKENS, TOKENS + 1], strict=True):
        found, wanted = (each.run(tokens[:, start:end], start, PLACES[start:end]) for each in (coded, oracle))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    assert_rows_agree(coded, oracle, cache_of(decoder_of(), scheme), TOKENS + 1)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("phase", ["any", "step"])
def test_steps_of_a_batch_read_rounded_rows_at_positions_that_are_not_their_rows(
    scheme: CacheScheme, phase: str, pair, decoder_of
) -> None:
    """A graph for steps turns inside attention, which on an empty cache reads one position: so positions follow on."""
    coded, oracle = pair(scheme, phase, sequences=2)
    tokens, places = embeds_of(2), np.arange(TOKENS + 1) + 7
    for start, end in ((0, 5), *((at, at + 1) for at in range(5, TOKENS + 1))):
        found, wanted = (each.run(tokens[:, start:end], start, places[start:end]) for each in (coded, oracle))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    assert_rows_agree(coded, oracle, cache_of(decoder_of(), scheme), TOKENS + 1)


@pytest.mark.parametrize("head_size", [8, 24])
def test_heads_that_are_turned_outside_are_cached_as_codes_too(head_size: int, pair, decoder_of) -> None:
    coded, oracle = pair("int8", "any", head_size=head_size)
    tokens = embeds_of()
    for start, end in ((0, 5), (5, TOKENS), (TOKENS, TOKENS + 1)):
        found, wanted = (each.run(tokens[:, start:end], start, PLACES[start:end]) for each in (coded, oracle))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def needed(model: ir.Model) -> Counter[str]:
    """Return the operators that run for the logits, branches aside; what these read is there before one is chosen."""
    found: set[ir.Node] = set()
    left = [value.producer() for value in model.graph.outputs if value.name == "logits"]
    while left:
        node = left.pop()
        if node is None or node in found:
            continue
        found.add(node)
        bodies = [
            each
            for attribute in node.attributes.values()
            if attribute.name.endswith("_branch")
            for each in attribute.value
        ]
        left += [value.producer() for each in (node, *bodies) for value in each.inputs if value is not None]
    return Counter(node.op_type for node in found if node.graph is model.graph)


def test_a_step_meets_one_operator_more_a_layer_than_over_floats(decoder_of) -> None:
    """The choice; what turns many rows into numbers is inside of it, rotary embedding as well."""

    def of_layer(phase: str, has_codes: bool) -> Counter[str]:
        counts = []
        for num_layers in (2, 3):
            model = decoder_of(num_layers=num_layers)
            lower_decoder(model, MAX_POSITIONS, phase, cache_of(model, "int8") if has_codes else None)
            counts.append(needed(model))
        return counts[1] - counts[0]

    over_floats, over_codes = of_layer("step", False), of_layer("any", True)
    assert over_codes - over_floats == Counter({"If": 1})
    assert over_floats - over_codes == Counter({"GroupQueryAttention": 1})
