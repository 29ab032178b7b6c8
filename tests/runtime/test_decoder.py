"""Steps over a bound cache against plain runs of the same graphs, and which graph runs what."""

from typing import Any

import numpy as np
import pytest

from bundle.errors import SignatureError
from bundle.manifest import TensorSpec
from runtime.decoder import Decoder, TokenGraphs
from runtime.feeds import Placed, Step, TokenBatch, TokenRun, feeds_of
from runtime.graph import Graph
from runtime.session import Session

RNG = np.random.default_rng(7)


def run_of(length: int, num_tokens: int, **changes: Any) -> TokenRun:
    """Return random tokens behind `length` rows."""
    ids = RNG.integers(6, 60, num_tokens)
    values = {"positions": np.arange(length, length + num_tokens), "lengths": [length], "wanted": [num_tokens - 1]}
    return TokenRun(ids, **{**values, **changes})


class CopyingDecoder:
    """The same steps through plain runs: the states go in and come back as new arrays."""

    def __init__(self, model: Any, settings: Any) -> None:
        manifest = model.bundle.manifest
        self._embed = Session(model.bundle, "embed_tokens", settings)
        phases = ("prompt", "step")
        self._decoders = {phase: Session(model.bundle, manifest.graph("decoder", phase), settings) for phase in phases}
        shape = model.shape(settings)
        self.states = manifest.states
        self.cache = {s.input: np.zeros(s.sizes(shape.num_slots, shape.capacity_tokens), s.dtype) for s in self.states}

    def run(self, phase: str, start: int, runs: list[TokenRun]) -> np.ndarray:
        rows = slice(start, start + len(runs))
        outputs = self._decoders[phase].run(
            {
                "inputs_embeds": self._embed.run({"input_ids": np.stack([run.ids for run in runs])})["inputs_embeds"],
                "position_ids": np.stack([run.positions for run in runs]),
                "past_lengths": np.array([run.lengths for run in runs]).T,
                "logits_indices": np.array([run.wanted for run in runs]),
                **{name: array[rows] for name, array in self.cache.items()},
            }
        )
        for state in self.states:
            self.cache[state.input][rows] = outputs[state.output]
        return outputs["logits"]


@pytest.fixture(params=["contrib", "portable"])
def model(request, tiny_models):
    return tiny_models(request.param)


@pytest.fixture
def decoder(model, settings) -> Decoder:
    return Decoder(model.graphs(settings), model.shape(settings))


STEPS = [
    ("prompt", 1, [0], 9),
    ("prompt", 1, [9], 4),
    ("prompt", 2, [0], 1),
    ("step", 1, [13, 1], 1),
    ("step", 0, [0, 14, 2, 0], 1),
    ("prompt", 3, [0], 5),
    ("step", 1, [15, 3, 5], 1),
    ("step", 1, [16], 3),
]


@pytest.mark.parametrize("has_prompt_graph", [False, True])
def test_bound_steps_equal_copying_runs_bit_for_bit_in_logits_and_states(
    model, settings, tmp_path, has_prompt_graph
) -> None:
    if has_prompt_graph:
        model = model.with_prompt_graph(tmp_path)
    decoder, copying = Decoder(model.graphs(settings), model.shape(settings)), CopyingDecoder(model, settings)
    for phase, start, lengths, num_tokens in STEPS:
        runs = [run_of(length, num_tokens) for length in lengths]
        np.testing.assert_array_equal(decoder.run(phase, start, runs), copying.run(phase, start, runs))
    for slot, length in ((1, 17), (2, 4), (3, 6)):  # what was written, told by a step that reads it
        probe = [run_of(length, 1)]
        np.testing.assert_array_equal(decoder.run("step", slot, probe), copying.run("step", slot, probe))


def test_the_phase_chooses_the_graph_however_few_the_tokens(model, settings, tmp_path) -> None:
    both = model.with_prompt_graph(tmp_path)
    decoder = Decoder(both.graphs(settings), both.shape(settings))
    one_token = [run_of(0, 1)]
    prompt, step = decoder.run("prompt", 0, one_token).copy(), decoder.run("step", 0, one_token).copy()
    assert np.abs(prompt - step).max() > 0.1
    alone = Decoder(model.graphs(settings), model.shape(settings))
    np.testing.assert_array_equal(alone.run("prompt", 0, one_token), step)


def test_a_step_touches_only_the_new_rows_of_its_own_slots(model, decoder) -> None:
    for slot in range(4):
        decoder.run("prompt", slot, [run_of(0, 6)])
    probes = [run_of(6, 1) for _ in range(4)]
    before = [decoder.run("step", slot, [probe]).copy() for slot, probe in enumerate(probes)]
    decoder.run("step", 1, [run_of(6, 1), run_of(6, 1)])  # writes row 6 of two slots, which the probes write anew
    for slot, probe in enumerate(probes):
        np.testing.assert_array_equal(decoder.run("step", slot, [probe]), before[slot])


def test_many_batch_sizes_keep_few_bindings_and_stay_right(tiny_model, settings, monkeypatch) -> None:
    made, binding = [], Graph.binding
    monkeypatch.setattr(Graph, "binding", lambda graph: made.append(graph) or binding(graph))
    many = settings.model_copy(update={"max_sequences": 96})
    decoder = Decoder(tiny_model.graphs(many), tiny_model.shape(many))
    runs = [run_of(0, 1) for _ in range(96)]
    whole = decoder.run("step", 0, runs).copy()
    for size in range(1, 97):
        # Matrix products of other heights round differently.
        np.testing.assert_allclose(decoder.run("step", 0, runs[:size]), whole[:size], rtol=0, atol=1e-4)
    made.clear()
    for size in range(33, 97):  # the last 64 are kept
        decoder.run("step", 0, runs[:size])
    assert not made
    decoder.run("step", 0, runs[:1])  # and no others
    assert len(made) == 1


def test_image_features_take_the_places_they_are_put_in_and_no_others(tiny_model, settings) -> None:
    graphs = tiny_model.graphs(settings)
    rows = RNG.normal(size=(3, tiny_model.config.hidden_size)).astype(np.float32)
    run = run_of(0, 6, features=(Placed(1, rows[:2]), Placed(5, rows[2:])))
    plain, filled = graphs.embed(run.ids[None])[0], graphs.step(TokenBatch.of([run])).embeds[0]
    np.testing.assert_array_equal(filled[[1, 2, 5]], rows)
    np.testing.assert_array_equal(filled[[0, 3, 4]], plain[[0, 3, 4]])


def test_what_a_decoder_may_ask_for_is_filled_by_its_name_and_its_shape() -> None:
    embeds = np.zeros((2, 3, 4), np.float32)
    runs = [run_of(5, 3, lengths=[5, 4]), run_of(7, 3, lengths=[7, 2], features=(Placed(1, embeds[0, :2]),))]
    specs = [
        TensorSpec(name="past_lengths", dtype="int64", shape=(2, "B")),
        TensorSpec(name="position_ids", dtype="int64", shape=("B", "T")),
        TensorSpec(name="is_image", dtype="bool", shape=("B", "T")),
    ]
    feeds = feeds_of(specs, Step.of(runs, embeds))
    np.testing.assert_array_equal(feeds["past_lengths"], [[5, 7], [4, 2]])
    np.testing.assert_array_equal(feeds["position_ids"], [[5, 6, 7], [7, 8, 9]])
    np.testing.assert_array_equal(feeds["is_image"], [[False] * 3, [False, True, True]])
    format_1 = TensorSpec(name="past_lengths", dtype="int64", shape=("B",))
    np.testing.assert_array_equal(feeds_of([format_1], Step.of(runs, embeds))["past_lengths"], [5, 7])


def test_three_axes_of_positions_stay_three_axes() -> None:
    places = np.arange(6).reshape(3, 2)
    runs = [run_of(0, 2, positions=places), run_of(0, 2, positions=places + 10)]
    spec = TensorSpec(name="position_ids", dtype="int64", shape=(3, "B", "T"))
    found = feeds_of([spec], Step.of(runs, np.zeros((2, 2, 1), np.float32)))["position_ids"]
    assert found.shape == (3, 2, 2)
    np.testing.assert_array_equal(found[:, 1], places + 10)


def test_an_input_that_nobody_knows_is_refused_when_the_bundle_is_opened(tiny_model, settings) -> None:
    components = tiny_model.bundle.manifest.components
    inputs = components["decoder"].inputs
    renamed = (inputs[0].model_copy(update={"name": "token_types"}), *inputs[1:])
    changed = {**components, "decoder": components["decoder"].model_copy(update={"inputs": renamed})}
    with pytest.raises(SignatureError, match="token_types"):
        TokenGraphs(tiny_model.with_manifest(components=changed).bundle, settings)


def test_two_graphs_that_take_different_tensors_cannot_share_a_cache(tiny_model, settings, tmp_path) -> None:
    model = tiny_model.with_prompt_graph(tmp_path)
    components = model.bundle.manifest.components
    prompts = components["decoder_prefill"]
    renamed = prompts.model_copy(update={"inputs": tuple(reversed(prompts.inputs))})
    other = model.with_manifest(components={**components, "decoder_prefill": renamed})
    with pytest.raises(SignatureError, match=r"does not take and give what .*decoder.*\.onnx does"):
        other.graphs(settings)


@pytest.mark.parametrize("axes", [(), (3,)])
def test_sampled_tokens_lie_side_by_side_as_runs_of_one_token_do(axes: tuple[int, ...]) -> None:
    ids, places, lengths = [7, 9, 8], [4, 11, 6], [[4, 3], [10, 5], [6, 6]]
    runs = [
        TokenRun(np.array([token]), np.full((*axes, 1), place), rows, [0])
        for token, place, rows in zip(ids, places, lengths, strict=True)
    ]
    expected, found = TokenBatch.of(runs), TokenBatch.of_sampled(ids, places, lengths, axes)
    for name in ("ids", "positions", "lengths", "wanted"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == np.int64
