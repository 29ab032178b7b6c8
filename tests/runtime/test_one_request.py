from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from bundle.directory import open_bundle, read_manifest
from bundle.errors import BundleFormatError, ContextLengthError, MachineError
from bundle.golden import canary_image
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.prompt import Placeholder, Turn
from bundle.text import Tokenizer
from graphs.store import save_graph
from runtime.filled_prompt import FilledPrompt
from runtime.graph import Graph
from runtime.one_embedding import DualEncoderRunner
from runtime.one_request import VisionLanguageRunner
from runtime.session import Session
from runtime.settings import RuntimeSettings

TURNS = [Turn("user", (Placeholder.IMAGE, "What is this?"))]
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def runner(smolvlm_bundle: Path) -> VisionLanguageRunner:
    return VisionLanguageRunner(open_bundle(smolvlm_bundle))


@pytest.fixture(scope="module")
def prompt(runner: VisionLanguageRunner) -> FilledPrompt:
    return runner.prompt(TURNS, [canary_image()])


def greedy_ids(runner: VisionLanguageRunner, prompt: FilledPrompt, num_tokens: int) -> list[int]:
    """Return the greedy continuation found one whole prompt at a time."""
    chosen: list[int] = []
    for _ in range(num_tokens):
        chosen.append(int(runner.answer_logits(prompt, [*chosen, 0])[-1].argmax()))
    return chosen


def test_feeding_an_answer_gives_the_logits_that_decoding_it_would(runner, prompt) -> None:
    chosen = greedy_ids(runner, prompt, 6)
    assert len(set(chosen)) > 1  # a decoder that repeats itself would hide a shift by one
    logits = runner.answer_logits(prompt, chosen)
    assert logits.shape[0] == 6
    assert logits.argmax(axis=1).tolist() == chosen


def test_a_greedy_reply_is_its_greedy_tokens_up_to_the_end(runner, prompt, smolvlm_bundle: Path) -> None:
    chosen = greedy_ids(runner, prompt, NUM_TOKENS)
    ends = [at for at, token_id in enumerate(chosen) if token_id in read_manifest(smolvlm_bundle).eos_token_ids]
    reply = runner.reply_ids(runner.prefill(prompt, NUM_TOKENS), NUM_TOKENS)
    assert reply == (chosen[: ends[0]] if ends else chosen)
    assert runner.text_of(reply) == Tokenizer.from_file(smolvlm_bundle / "tokenizer.json").decode(reply)


def test_a_prompt_that_was_run_serves_several_answers_until_the_next_one(runner, prompt, smolvlm_bundle) -> None:
    run = runner.prefill(prompt, NUM_TOKENS)
    first = runner.forced_logits(run, [5, 6, 7, 8])
    runner.reply_ids(run, NUM_TOKENS)
    np.testing.assert_array_equal(runner.forced_logits(run, [5, 6, 7, 8]), first)
    # The prompt and its answer in one run: other matrix shapes, sums in another order.
    decoder = Session(open_bundle(smolvlm_bundle), "decoder", RuntimeSettings())
    whole = decoder.run(runner.answer_feeds(prompt, [5, 6, 7, 8]))["logits"][0]
    np.testing.assert_allclose(first, whole, atol=1e-3)  # float32 sums in another order, layers of gain 2
    runner.prefill(prompt, NUM_TOKENS)
    with pytest.raises(ValueError, match="another prompt was run since"):
        runner.forced_logits(run, [5, 6])


@pytest.mark.parametrize("most_tokens", [256, 2])
def test_an_answer_fed_at_once_has_the_logits_of_one_fed_token_by_token(
    smolvlm_bundle: Path, runner, prompt, monkeypatch: pytest.MonkeyPatch, most_tokens: int
) -> None:
    at_once = VisionLanguageRunner(open_bundle(smolvlm_bundle), whole_answers=True)
    ids = greedy_ids(runner, prompt, 6)
    expected = runner.forced_logits(runner.prefill(prompt, NUM_TOKENS), ids)
    run = at_once.prefill(prompt, NUM_TOKENS)
    monkeypatch.setattr("runtime.one_request.DEFAULT_CHUNK_TOKENS", most_tokens)
    np.testing.assert_allclose(at_once.forced_logits(run, ids), expected, atol=1e-3)  # sums in another order
    # The answer left nothing behind that the next one would see.
    assert at_once.reply_ids(run, NUM_TOKENS) == runner.reply_ids(runner.prefill(prompt, NUM_TOKENS), NUM_TOKENS)
    np.testing.assert_array_equal(at_once.forced_logits(run, ids[:1]), run.logits[None])


def test_an_answer_ends_where_another_is_begun_or_a_prompt_fails(runner, prompt, monkeypatch) -> None:
    run = runner.prefill(prompt, NUM_TOKENS)
    first = runner.greedy_tokens(run)
    expected = [next(first), next(first)]
    again = runner.greedy_tokens(run)
    assert [next(again), next(again)] == expected
    with pytest.raises(ValueError, match="another prompt or answer was begun"):
        next(first)

    def failing(*_: object) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("runtime.decoder.Decoder.run", failing)
        with pytest.raises(RuntimeError, match="no memory"):
            runner.prefill(prompt, NUM_TOKENS)
    with pytest.raises(ValueError, match="another prompt"):
        runner.forced_logits(run, [5, 6])


@pytest.mark.parametrize("ids", [[], [7, 8]], ids=["no prompt", "no answer"])
def test_nothing_has_no_logits(runner, ids) -> None:
    with pytest.raises(ValueError, match="no tokens"):
        runner.answer_logits(FilledPrompt.of_ids(np.array(ids, np.int64)), [])


def test_the_room_that_was_asked_for_is_what_an_answer_may_take(smolvlm_bundle: Path) -> None:
    runner = VisionLanguageRunner(open_bundle(smolvlm_bundle))
    run = runner.prefill(FilledPrompt.of_ids(np.full(100, 7)), 1)
    with pytest.raises(ContextLengthError, match=f"exceed the cache's {run.capacity_tokens} "):
        runner.forced_logits(run, [5] * run.capacity_tokens)


def test_a_longer_cache_changes_no_answer(smolvlm_bundle: Path) -> None:
    runner, short = VisionLanguageRunner(open_bundle(smolvlm_bundle)), FilledPrompt.of_ids(np.arange(6, 20))
    before = runner.answer_logits(short, [5, 6, 7])
    capacity = runner.prefill(short, 3).capacity_tokens
    grown = runner.prefill(FilledPrompt.of_ids(np.full(capacity, 7)), 1)
    assert grown.capacity_tokens > capacity
    np.testing.assert_array_equal(runner.answer_logits(short, [5, 6, 7]), before)


def test_an_answer_beyond_the_context_is_refused(runner, smolvlm_bundle: Path) -> None:
    limit = read_manifest(smolvlm_bundle).decoder.max_positions
    with pytest.raises(ContextLengthError, match=rf"the model's limit: {limit}"):
        runner.answer_logits(FilledPrompt.of_ids(np.full(limit - 1, 7)), [1, 2, 3])
    with pytest.raises(ContextLengthError, match=f"the model holds {limit}"):
        runner.prefill(FilledPrompt.of_ids(np.full(limit + 1, 7)), 0)


def test_each_image_is_known_by_the_tile_that_shows_all_of_it(runner) -> None:
    small, large = canary_image(), canary_image().resize((200, 90))
    alone = [runner.see([image]) for image in (small, large)]
    together = runner.see([small, large])
    assert [len(tiles) for tiles in together.features] == [len(seen.features[0]) for seen in alone]
    assert sum(map(len, together.features)) > 2
    for whole, seen in zip(together.whole, alone, strict=True):
        np.testing.assert_allclose(whole, seen.features[0][-1], atol=1e-5)


def test_logits_equal_transformers(runner, smolvlm_checkpoint: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(smolvlm_checkpoint).eval()
    prompt, answer = runner.prompt([Turn("user", ("Hello",))], []), runner.answer_ids("yes")
    ids = [*prompt.prompt.token_ids.tolist(), *answer[:-1]]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0, prompt.num_tokens - 1 :].numpy()
    # float32 sums in another order, three layers with matrices of gain 2.
    np.testing.assert_allclose(runner.answer_logits(prompt, answer), expected, atol=1e-3)


def test_an_answer_ends_with_the_end_token(runner, smolvlm_bundle: Path) -> None:
    ids = runner.answer_ids("no")
    assert ids[-1] in read_manifest(smolvlm_bundle).eos_token_ids
    assert runner.text_of(ids[:-1]) == " no"  # as the template writes an answer


def test_another_image_is_another_prompt(runner, prompt) -> None:
    other = runner.prompt(TURNS, [Image.new("RGB", canary_image().size, "red")])
    np.testing.assert_array_equal(other.prompt.token_ids, prompt.prompt.token_ids)
    logits = [runner.answer_logits(each, [5, 6]) for each in (prompt, other)]
    assert np.abs(logits[0] - logits[1]).max() > 0.01


def test_generation_stops_at_the_models_longest_sequence(runner, smolvlm_bundle: Path) -> None:
    limit = read_manifest(smolvlm_bundle).decoder.max_positions
    prompt = FilledPrompt.of_ids(np.full(limit - 1, 7))
    assert len(list(runner.greedy_tokens(runner.prefill(prompt, 50)))) == 2


def test_embeddings_are_unit_length_and_equal_transformers(clip_bundle: Path, clip_checkpoint: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import CLIPModel

    runner = DualEncoderRunner(open_bundle(clip_bundle))
    images = [canary_image(), Image.new("RGB", (33, 50), "blue")] * 20  # more than one batch
    found = runner.embed_images(images)
    pixels = torch.from_numpy(ImageSpec.read(clip_bundle / PREPROCESSOR).preprocess(images).pixel_values)
    model = CLIPModel.from_pretrained(clip_checkpoint).eval()
    with torch.no_grad():
        features = model.visual_projection(model.vision_model(pixels).pooler_output)
        expected = torch.nn.functional.normalize(features, dim=1).numpy()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    # float32 sums in another order, two layers.
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_texts_longer_than_the_model_reads_are_cut(clip_bundle: Path) -> None:
    runner = DualEncoderRunner(open_bundle(clip_bundle))
    assert runner.embed_texts(["a" * 500, "a"]).shape[0] == 2


def test_a_bundle_of_the_other_task_is_refused(clip_bundle: Path, smolvlm_bundle: Path) -> None:
    with pytest.raises(BundleFormatError, match="takes no chat"):
        VisionLanguageRunner(open_bundle(clip_bundle))
    with pytest.raises(BundleFormatError, match="no embedding sizes"):
        DualEncoderRunner(open_bundle(smolvlm_bundle))


def test_a_graph_that_the_runtime_cannot_run_says_what_to_do(model_of, tmp_path: Path) -> None:
    inputs = {"x": (ir.DataType.FLOAT, [2])}
    save_graph(model_of(inputs, [("NoSuchOperator", ["x"], "y", {})], {}, ["y"]), tmp_path / "new.onnx")
    with pytest.raises(MachineError, match=r"NoSuchOperator.*pocketvlm doctor"):
        Graph(tmp_path / "new.onnx", RuntimeSettings())
