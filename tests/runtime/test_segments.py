"""Prompts that run segment by segment: nothing changes where nothing is dropped, and what is dropped is not seen again.

The reference is transformers' Llama with the same weights, in one pass without a cache: what was dropped before a layer
is masked there for all tokens behind it, and positions stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bundle.errors import SignatureError
from bundle.prompt import Prompt, Span
from runtime.decoder import Decoder
from runtime.feeds import Placed, TokenBatch, TokenRun
from runtime.filled_prompt import FilledPrompt
from runtime.segmented_prompt import Cut, Layers, SegmentedPrompt
from runtime.segments import SegmentChain, read_segments, run_segment
from serving.settings import EngineSettings

GROUPS = (0, 1, 1, 2)
NUM_TOKENS = 20
IMAGES = ((2, 8), (10, 15))
"""Tokens of two images."""


@pytest.fixture(params=["contrib", "portable", "contrib, cache int8"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


OVER_FLOATS = pytest.mark.parametrize("dialect", ["contrib", "portable"])
"""Where a run is held against a reference that rounds nothing."""


@pytest.fixture
def model(dialect: str, tiny_models: Any) -> Any:
    return tiny_models(dialect, GROUPS, in_segments=True)


@pytest.fixture
def decoder(model: Any, settings: EngineSettings) -> Decoder:
    return Decoder(model.graphs(settings), model.shape(settings))


def prompt_with_images(width: int, seed: int = 3) -> FilledPrompt:
    """Return a prompt whose places are no rows: they have a gap."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(6, 60, NUM_TOKENS)
    spans = tuple(Span(start, end, image, 0) for image, (start, end) in enumerate(IMAGES))
    positions = np.arange(NUM_TOKENS) + np.where(np.arange(NUM_TOKENS) >= IMAGES[0][1], 4, 0)
    prompt = Prompt(ids, spans, positions, NUM_TOKENS + 4, len(IMAGES))
    features = [rng.normal(size=(span.end - span.start, width)).astype(np.float32) for span in spans]
    return FilledPrompt.of(prompt, features)


def whole(decoder: Decoder, prompt: FilledPrompt) -> np.ndarray:
    run = prompt.run(0, NUM_TOKENS, [0] * 3, [NUM_TOKENS - 1])
    return decoder.run("prompt", 0, [run])[0, 0].copy()


def segmented(model: Any, prompt: FilledPrompt, choose: Callable[[Cut], np.ndarray]) -> SegmentedPrompt:
    return SegmentedPrompt(prompt, Layers.of(model.bundle.manifest), choose)


def every_other(cut: Cut) -> np.ndarray:
    return cut.image_rows[::2]


@pytest.mark.parametrize("most_tokens", [512, 7, 2])
def test_nothing_dropped_is_the_whole_graph(model: Any, decoder: Decoder, most_tokens: int) -> None:
    prompt = prompt_with_images(model.config.hidden_size)
    expected = whole(decoder, prompt)
    reading = segmented(model, prompt, lambda cut: cut.image_rows)
    found = read_segments(decoder, 1, reading, most_tokens)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert reading.rows == [NUM_TOKENS] * 3


@OVER_FLOATS
def test_a_chain_of_segments_gives_what_the_whole_graph_gives(model: Any, decoder: Decoder) -> None:
    graphs, prompt = decoder.graphs, prompt_with_images(model.config.hidden_size)
    run = prompt.run(0, NUM_TOKENS, [0] * 3, [NUM_TOKENS - 1])
    states = {state.input: np.zeros(state.sizes(1, NUM_TOKENS), np.float32) for state in model.bundle.manifest.states}
    feeds = {**graphs.feeds("prompt", graphs.step(TokenBatch.of([run]))), **states}
    expected = graphs.of_phase("prompt").run(feeds)
    found = SegmentChain(graphs.segments).run(feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5, err_msg=name)


@pytest.fixture
def reference(llama: Any) -> Any:
    """The function that returns transformers' logits [T, V] and what it attends to in each layer [H, T, T].

    It takes the model whose weights that gets, all of the prompt, and by layer the tokens that later ones do not see.
    """
    import torch

    def run(model: Any, prompt: FilledPrompt, gone: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        whole, length = llama.of(model), prompt.num_tokens
        for layer, dropped in zip(whole.model.layers, gone, strict=True):
            seen = np.tril(np.ones((length, length), bool))
            for token in dropped:
                seen[token + 1 :, token] = False
            llama.show_only(layer, seen)
        with torch.no_grad():
            embeds = whole.model.embed_tokens(torch.from_numpy(prompt.prompt.token_ids)[None]).clone()
            for placed in prompt.placed:
                embeds[0, placed.start : placed.start + len(placed.rows)] = torch.from_numpy(placed.rows)
            places = torch.from_numpy(prompt.prompt.positions)[None]
            out = whole(inputs_embeds=embeds, position_ids=places, output_attentions=True)
        return out.logits[0].numpy(), [each[0].numpy() for each in out.attentions]

    return run


@OVER_FLOATS
def test_dropped_tokens_are_as_if_masked_in_later_layers_and_positions_stay(
    model: Any, decoder: Decoder, reference
) -> None:
    prompt = prompt_with_images(model.config.hidden_size)
    reading = segmented(model, prompt, every_other)
    found = read_segments(decoder, 0, reading, 7)
    first = np.concatenate([np.arange(*image) for image in IMAGES])
    second, third = first[::2], first[::2][::2]
    gone = [np.array([], int), np.setdiff1d(first, second), np.setdiff1d(first, second), np.setdiff1d(first, third)]
    expected, _ = reference(model, prompt, gone)
    np.testing.assert_allclose(found, expected[-1], rtol=0, atol=2e-4)
    assert reading.rows == [20, 20 - 5, 20 - 8]


@OVER_FLOATS
def test_steps_behind_a_reduced_prompt_see_what_is_left(model: Any, decoder: Decoder, reference) -> None:
    prompt = prompt_with_images(model.config.hidden_size)
    reading = segmented(model, prompt, every_other)
    read_segments(decoder, 0, reading, 512)
    step = TokenRun(np.array([9]), np.array([prompt.prompt.next_position]), reading.rows, [0])
    found = decoder.run("step", 0, [step])[0, 0]
    first = np.concatenate([np.arange(*image) for image in IMAGES])
    lost, last = np.setdiff1d(first, first[::2]), np.setdiff1d(first, first[::4])
    places = np.append(prompt.prompt.positions, prompt.prompt.next_position)
    longer = Prompt(np.append(prompt.prompt.token_ids, 9), prompt.prompt.spans, places, 0, 2)
    features = [placed.rows for placed in prompt.placed]
    expected, _ = reference(model, FilledPrompt.of(longer, features), [np.array([], int), lost, lost, last])
    np.testing.assert_allclose(found, expected[-1], rtol=0, atol=2e-4)


@OVER_FLOATS
def test_a_cut_tells_what_the_layer_before_it_attends_to(model: Any, decoder: Decoder, reference) -> None:
    from quant.visual_tokens.inside.attention import all_rows, last_row

    cuts: list[Cut] = []

    def look(cut: Cut) -> np.ndarray:
        cuts.append(cut)
        return cut.image_rows

    prompt = prompt_with_images(model.config.hidden_size)
    read_segments(decoder, 0, segmented(model, prompt, look), 7)
    _, attentions = reference(model, prompt, [np.array([], int)] * len(GROUPS))
    assert [(cut.number, cut.layer, cut.num_cuts, cut.num_layers) for cut in cuts] == [(0, 1, 2, 4), (1, 3, 2, 4)]
    for cut in cuts:
        expected = attentions[cut.layer - 1].mean(axis=0)
        np.testing.assert_allclose(all_rows(cut, 1.0), expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(last_row(cut), expected[-1], rtol=0, atol=1e-4)


def test_a_prompt_of_text_alone_is_never_asked_about(model: Any, decoder: Decoder) -> None:
    def refuse(cut: Cut) -> np.ndarray:
        raise AssertionError("asked")

    prompt = FilledPrompt.of_ids(np.arange(6, 20))
    reading = segmented(model, prompt, refuse)
    read_segments(decoder, 0, reading, 512)
    assert reading.rows == [14] * 3


def test_all_images_can_leave(model: Any, decoder: Decoder) -> None:
    reading = segmented(model, prompt_with_images(model.config.hidden_size), lambda cut: np.array([], int))
    read_segments(decoder, 0, reading, 512)
    assert reading.rows == [20, 9, 9]


def test_a_prompt_that_begins_anew_runs_as_if_it_never_had(model: Any, decoder: Decoder) -> None:
    reading = segmented(model, prompt_with_images(model.config.hidden_size), every_other)
    expected = read_segments(decoder, 0, reading, 7)
    reading.restart()
    assert reading.num_left_tokens == NUM_TOKENS
    run_segment(decoder, 2, reading, *reading.next_chunk(7))
    reading.restart()
    np.testing.assert_array_equal(read_segments(decoder, 1, reading, 7), expected)


def test_hidden_states_of_images_are_marked_as_images(model: Any, decoder: Decoder) -> None:
    reading = segmented(model, prompt_with_images(model.config.hidden_size), every_other)
    run_segment(decoder, 0, reading, 0, NUM_TOKENS)
    run = reading.run(0, reading.num_tokens)
    marked = [(placed.start, len(placed.rows)) for placed in run.features]
    assert marked == [(2, 3), (7, 3)]
    assert isinstance(run.features[0], Placed)
    assert run.positions.tolist()[:6] == [0, 1, 2, 4, 6, 12]


def test_a_segment_that_gives_something_else_is_refused(model: Any, settings: EngineSettings) -> None:
    manifest = model.bundle.manifest
    first, *others = manifest.segments
    wider = first.outputs[0].model_copy(update={"shape": ("B", "T", 47)})
    for changes, told in (
        ({"outputs": (wider,)}, "the manifest says float32"),
        ({"optional_outputs": first.optional_outputs[:1]}, "outputs are"),
    ):
        broken = model.with_manifest(segments=(first.model_copy(update=changes), *others))
        with pytest.raises(SignatureError, match=told):
            broken.graphs(settings)
    with pytest.raises(SignatureError, match="a segment gives hidden_states"):
        model.with_manifest(segments=manifest.segments[::-1]).graphs(settings)
