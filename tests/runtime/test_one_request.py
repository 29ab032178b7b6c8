from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from bundle.directory import read_manifest
from bundle.errors import BundleFormatError, MachineError, QuantizationError
from bundle.golden import canary_image
from bundle.prompt import Placeholder, Turn
from bundle.text import Tokenizer
from graphs.layers import find_linears
from graphs.store import open_graph, save_graph
from runtime.one_request import DualEncoderRunner, Graph, VisionLanguageRunner

TURNS = [Turn("user", (Placeholder.IMAGE, "What is this?"))]
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def runner(smolvlm_bundle: Path) -> VisionLanguageRunner:
    return VisionLanguageRunner(smolvlm_bundle, read_manifest(smolvlm_bundle))


def greedy_ids(runner: VisionLanguageRunner, embeds: np.ndarray, num_tokens: int) -> list[int]:
    """Return the greedy continuation found one whole prompt at a time, without a cache."""
    chosen: list[int] = []
    for _ in range(num_tokens):
        chosen.append(int(runner.answer_logits(embeds, [*chosen, 0])[-1].argmax()))
    return chosen


def test_feeding_an_answer_gives_the_logits_that_decoding_it_would(runner: VisionLanguageRunner) -> None:
    embeds = runner.prompt_embeds(TURNS, [canary_image()])
    chosen = greedy_ids(runner, embeds, 6)
    assert len(set(chosen)) > 1  # a decoder that repeats itself would hide a shift by one
    logits = runner.answer_logits(embeds, chosen)
    assert logits.shape[0] == 6
    assert logits.argmax(axis=1).tolist() == chosen


def test_a_greedy_reply_is_its_greedy_tokens_up_to_the_end(runner: VisionLanguageRunner, smolvlm_bundle: Path) -> None:
    embeds = runner.prompt_embeds(TURNS, [canary_image()])
    manifest = read_manifest(smolvlm_bundle)
    chosen = greedy_ids(runner, embeds, NUM_TOKENS)
    ends = [at for at, token_id in enumerate(chosen) if token_id in manifest.eos_token_ids]
    reply = runner.reply_ids(runner.prefill(embeds, NUM_TOKENS), NUM_TOKENS)
    assert reply == (chosen[: ends[0]] if ends else chosen)
    assert runner.text_of(reply) == Tokenizer.from_file(smolvlm_bundle / "tokenizer.json").decode(reply)


def test_a_prompt_that_was_run_serves_several_answers(runner: VisionLanguageRunner) -> None:
    embeds = runner.prompt_embeds(TURNS, [canary_image()])
    prompt = runner.prefill(embeds, NUM_TOKENS)
    first = runner.forced_logits(prompt, [5, 6, 7, 8])
    runner.reply_ids(prompt, NUM_TOKENS)
    np.testing.assert_array_equal(runner.forced_logits(prompt, [5, 6, 7, 8]), first)
    # The prompt and its answer in one run: other matrix shapes, sums in another order.
    whole = runner._decoder.run(runner.answer_feeds(embeds, [5, 6, 7, 8]))["logits"][0]
    np.testing.assert_allclose(first, whole, atol=1e-4)


def test_an_answer_beyond_the_context_is_refused(runner: VisionLanguageRunner, smolvlm_bundle: Path) -> None:
    dims = read_manifest(smolvlm_bundle).decoder
    assert dims is not None
    embeds = np.ones((1, dims.max_positions - 1, dims.hidden_size), np.float32)
    with pytest.raises(QuantizationError, match=f"exceed the model's {dims.max_positions}"):
        runner.answer_logits(embeds, [1, 2, 3])


def test_a_prompt_runs_on_the_graph_for_prompts_and_its_answer_on_the_other(
    smolvlm_bundle: Path, runner: VisionLanguageRunner, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(smolvlm_bundle, tmp_path / "dual"))
    manifest = read_manifest(folder)
    decoder = manifest.components["decoder"]
    save_graph(open_graph(folder / "decoder.onnx"), folder / "decoder_prefill.onnx")
    model = open_graph(folder / "decoder.onnx")  # the decode graph alone is damaged: its logits are all 0
    head = max(find_linears(model.graph), key=lambda linear: linear.num_outputs)
    weight = model.graph.initializers[head.name]
    weight.const_value = ir.tensor(np.zeros(weight.const_value.shape, np.float32), name=head.name)
    save_graph(model, tmp_path / "decoder.onnx")
    for suffix in ("", ".data"):
        shutil.move(tmp_path / f"decoder.onnx{suffix}", folder / f"decoder.onnx{suffix}")
    prefill = decoder.model_copy(update={"file": "decoder_prefill.onnx"})
    both = manifest.model_copy(update={"components": {**manifest.components, "decoder_prefill": prefill}})
    dual = VisionLanguageRunner(folder, both)
    embeds = runner.prompt_embeds(TURNS, [canary_image()])
    logits, expected = dual.answer_logits(embeds, [5, 6, 7]), runner.answer_logits(embeds, [5, 6, 7])
    np.testing.assert_array_equal(logits[0], expected[0])
    assert not logits[1:].any()
    assert expected[1:].any()


def test_each_image_is_known_by_the_tile_that_shows_all_of_it(runner: VisionLanguageRunner) -> None:
    small, large = canary_image(), canary_image().resize((200, 90))
    alone = [runner.see([image]) for image in (small, large)]
    together = runner.see([small, large])
    assert len(together.features) == sum(len(seen.features) for seen in alone) > 2
    for whole, seen in zip(together.whole, alone, strict=True):
        np.testing.assert_allclose(whole, seen.features[-1], atol=1e-5)


def test_logits_equal_transformers(runner: VisionLanguageRunner, smolvlm_checkpoint: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(smolvlm_checkpoint).eval()
    embeds = runner.prompt_embeds([Turn("user", ("Hello",))], [])
    answer = runner.answer_ids("yes")
    with torch.no_grad():
        fed = model.get_input_embeddings()(torch.tensor([answer[:-1]]))
        inputs = torch.cat([torch.from_numpy(embeds), fed], dim=1)
        expected = model(inputs_embeds=inputs).logits[0, embeds.shape[1] - 1 :].numpy()
    # float32 sums in another order, three layers with matrices of gain 2.
    np.testing.assert_allclose(runner.answer_logits(embeds, answer), expected, atol=1e-3)


def test_an_answer_ends_with_the_end_token(runner: VisionLanguageRunner, smolvlm_bundle: Path) -> None:
    ids = runner.answer_ids("no")
    assert ids[-1] in read_manifest(smolvlm_bundle).eos_token_ids
    assert len(ids) == 3


def test_another_image_is_another_prompt(runner: VisionLanguageRunner) -> None:
    one = runner.prompt_embeds(TURNS, [canary_image()])
    other = runner.prompt_embeds(TURNS, [Image.new("RGB", canary_image().size, "red")])
    assert one.shape == other.shape
    assert np.abs(one - other).max() > 0.01


def test_generation_stops_at_the_models_longest_sequence(runner: VisionLanguageRunner, smolvlm_bundle: Path) -> None:
    dims = read_manifest(smolvlm_bundle).decoder
    assert dims is not None
    embeds = np.ones((1, dims.max_positions - 1, dims.hidden_size), np.float32)
    assert len(runner.reply_ids(runner.prefill(embeds, 50), 50)) <= 2


def test_embeddings_are_unit_length_and_equal_transformers(clip_bundle: Path, clip_checkpoint: Path) -> None:
    import torch
    from transformers import CLIPModel

    manifest = read_manifest(clip_bundle)
    runner = DualEncoderRunner(clip_bundle, manifest)
    images = [canary_image(), Image.new("RGB", (33, 50), "blue")] * 20  # more than one batch
    found = runner.embed_images(images)
    pixels = torch.from_numpy(runner._images.preprocess(images).pixel_values)
    model = CLIPModel.from_pretrained(clip_checkpoint).eval()
    with torch.no_grad():
        features = model.visual_projection(model.vision_model(pixels).pooler_output)
        expected = torch.nn.functional.normalize(features, dim=1).numpy()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    # float32 sums in another order, two layers.
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_texts_longer_than_the_model_reads_are_cut(clip_bundle: Path) -> None:
    runner = DualEncoderRunner(clip_bundle, read_manifest(clip_bundle))
    assert runner.embed_texts(["a" * 500, "a"]).shape[0] == 2


def test_a_bundle_of_the_other_task_is_refused(clip_bundle: Path, smolvlm_bundle: Path) -> None:
    with pytest.raises(BundleFormatError, match="no decoder sizes"):
        VisionLanguageRunner(clip_bundle, read_manifest(clip_bundle))
    with pytest.raises(BundleFormatError, match="no embedding sizes"):
        DualEncoderRunner(smolvlm_bundle, read_manifest(smolvlm_bundle))


def test_a_graph_that_the_runtime_cannot_run_says_what_to_do(model_of, tmp_path: Path) -> None:
    inputs = {"x": (ir.DataType.FLOAT, [2])}
    save_graph(model_of(inputs, [("NoSuchOperator", ["x"], "y", {})], {}, ["y"]), tmp_path / "new.onnx")
    with pytest.raises(MachineError, match=r"NoSuchOperator.*pocketvlm doctor"):
        Graph(tmp_path / "new.onnx")
