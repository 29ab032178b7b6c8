"""Training scripts: they run, save what transformers loads, resume, and compute what transformers computes."""

from __future__ import annotations

import argparse
import copy
import pathlib
import random

import numpy as np
import pytest

from commands.shipped import CHECKPOINTS
from reference import contrast, packing
from reference.layout import dense_labels, render
from reference.scenes import held_out


@pytest.fixture(scope="module", autouse=True)
def _late_imports() -> None:
    """Import what trains here, so that collecting takes none of it."""
    global torch, transformers, clip_model, train_clip, train_vlm, train_wide, vlm_model, Matcher, Reader, Score
    global save_vlm, MasterWeights, Run, Schedule
    torch = pytest.importorskip("torch", reason="training needs the [train] extra")
    transformers = pytest.importorskip("transformers", reason="training needs the [train] extra")

    from reference import clip_model, train_clip, train_vlm, train_wide, vlm_model
    from reference.evaluate import Matcher, Reader, Score
    from reference.shipping import save_vlm
    from reference.training import MasterWeights, Run, Schedule


@pytest.fixture(scope="module")
def reader() -> Reader:
    """The shipped model: what holds for its weights holds on every machine."""
    return Reader(CHECKPOINTS["vlm"])


@pytest.fixture(scope="module")
def encoder() -> Matcher:
    """The shipped dual encoder."""
    return Matcher(CHECKPOINTS["clip"])


@pytest.fixture(scope="module")
def tokens(reader: Reader) -> transformers.PreTrainedTokenizerFast:
    return reader.processor.tokenizer


@pytest.fixture(scope="module")
def trained_vlm(quick_steps: None, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Five steps, with the shipped tokenizer, which test_checkpoints.py holds the scripts to: its training is slow."""
    folder = tmp_path_factory.mktemp("vlm")
    with pytest.MonkeyPatch.context() as patch:
        shipped = transformers.PreTrainedTokenizerFast.from_pretrained(CHECKPOINTS["vlm"])
        patch.setattr(train_vlm.tokenizer, "train", lambda: shipped)
        train_vlm.main(["--smoke", "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def trained_clip(quick_steps: None, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("clip")
    train_clip.main(["--smoke", "--out", str(folder)])
    return folder


def test_five_vlm_steps_leave_a_checkpoint_that_answers(trained_vlm: pathlib.Path) -> None:
    reader = Reader(trained_vlm)
    examples = [held_out(task, 1)[0] for task in ("colour", "compare", "chat")]
    assert len(reader.replies(examples, max_new_tokens=3)) == 3
    assert type(reader.model).__name__ == "SmolVLMForConditionalGeneration"


def test_two_steps_on_wider_pictures_leave_a_checkpoint_that_answers(
    quick_steps: None, tokens: transformers.PreTrainedTokenizerFast, tmp_path: pathlib.Path, monkeypatch
) -> None:
    monkeypatch.setattr(train_wide.tokenizer, "train", lambda *_: tokens)  # learning another takes most of the time
    train_wide.main(["--smoke", "--out", str(tmp_path / "vlm")])
    assert len(Reader(tmp_path / "vlm").replies([held_out("colour", 1)[0]], max_new_tokens=3)) == 1


def test_five_clip_steps_leave_a_checkpoint_that_embeds(trained_clip: pathlib.Path) -> None:
    assert Matcher(trained_clip).zero_shot("shape", 4, 0).n == 4


def test_weights_are_stored_in_half_precision(trained_vlm: pathlib.Path, trained_clip: pathlib.Path) -> None:
    from safetensors import safe_open

    for folder in (trained_vlm, trained_clip):
        with safe_open(folder / "model.safetensors", "pt") as file:
            kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 - not a mapping
        assert kinds == {"F16"}
        assert (folder / "model.safetensors").stat().st_size < 20 * 2**20


def test_packed_tokens_equal_the_processors_own(reader: Reader) -> None:
    packer = packing.Packer(reader.processor.tokenizer.backend_tokenizer)
    for task in ("colour", "text", "compare", "chat"):
        for example in held_out(task, 5):
            prompt = reader.processor.apply_chat_template(example.messages(), add_generation_prompt=True)
            wanted = reader.processor(text=prompt, images=list(example.images))["input_ids"][0]
            packed = packer.prefix(len(example.images))
            for i, turn in enumerate(example.turns):
                piece, question_tokens = packer.turn(turn, i == 0)
                packed += piece[:question_tokens] if turn is example.turns[-1] else piece
            assert packed == wanted


def test_packed_answers_have_the_logits_they_have_alone(reader: Reader) -> None:
    packer = packing.Packer(reader.processor.tokenizer.backend_tokenizer)
    sample = packing.sample(random.Random(4), 5, packing.THEMES)
    batch = packer.pack([sample])
    image = render(sample.scenes[0])
    inputs = reader.processor(text="<image>", images=[image], return_tensors="pt")
    with torch.inference_mode():
        features = reader.model.model.get_image_features(inputs["pixel_values"]).pooler_output[0][None]
        ids, positions, segments, rows = (
            torch.from_numpy(a) for a in (batch.ids, batch.positions, batch.segments, batch.rows)
        )
        packed = vlm_model.answer_logits(reader.model, features, ids, positions, segments, rows)
        row = 0
        for turns in sample.conversations:
            alone = packer.pack([packing.Sample(sample.scenes, [turns])])
            wanted = reader.model(input_ids=torch.from_numpy(alone.ids), pixel_values=inputs["pixel_values"]).logits
            got = packed[row : row + len(alone.rows)]
            row += len(alone.rows)
            # float32 sums in another order, on logits near 12
            torch.testing.assert_close(got, wanted[0, alone.rows[:, 1]], atol=1e-3, rtol=1e-4)
    assert row == len(packed)


def test_training_pixels_equal_the_processors_pixels(reader: Reader, encoder: Matcher) -> None:
    image = held_out("colour", 1)[0].images[0]
    wanted = np.asarray(image).astype(np.float32).transpose(2, 0, 1) / 127.5 - 1
    vlm = reader.processor(text="<image>", images=[image])["pixel_values"]
    clip = encoder.processor(images=[image])["pixel_values"]
    np.testing.assert_allclose(np.asarray(vlm[0][0]), wanted, atol=1e-5)
    np.testing.assert_allclose(np.asarray(clip[0]), wanted, atol=1e-5)


def test_any_text_survives_the_tokenizer(tokens: transformers.PreTrainedTokenizerFast) -> None:
    for text in ("What color is the star?", "K7Q", "漢字 😀 \x00", "tab\tand\nline", "ﬁ ﷽"):
        ids = tokens(text)["input_ids"]
        assert tokens.unk_token_id not in ids
        assert tokens.decode(ids) == text
    assert [len(tokens(f" {c}", add_special_tokens=False)["input_ids"]) for c in "AZ29"] == [2] * 4


def test_clip_tokenizer_knows_every_byte() -> None:
    tokens = transformers.AutoTokenizer.from_pretrained(CHECKPOINTS["clip"])
    for text in ("a large red circle", "the text k7q in red", "漢字 😀", "ﬁ"):
        ids = tokens(text)["input_ids"]
        assert ids[0] == tokens.bos_token_id
        assert ids[-1] == tokens.eos_token_id
        assert tokens.eos_token_id not in ids[1:-1]
    assert tokens.decode(tokens("a large red circle")["input_ids"], skip_special_tokens=True) == "a large red circle"


def test_clip_training_embeds_as_transformers_does(encoder: Matcher) -> None:
    texts = ["a circle", "a large red circle and a small blue star"]
    ids = encoder.processor.tokenizer(texts, padding=True, return_tensors="pt")
    pixels = torch.from_numpy(np.stack([np.asarray(held_out("colour", 1)[0].images[0])]))
    with torch.inference_mode():
        wanted = encoder.model(**ids, pixel_values=pixels.permute(0, 3, 1, 2) / 127.5 - 1)
        torch.testing.assert_close(clip_model.embed_texts(encoder.model, ids["input_ids"]), wanted.text_embeds)
        torch.testing.assert_close(clip_model.embed_images(encoder.model, pixels), wanted.image_embeds)


def test_true_captions_are_never_negatives() -> None:
    pairs = [contrast.pair(seed) for seed in range(64)]
    is_negative = train_clip.negatives(pairs)
    assert is_negative.shape == (64, 128)
    assert not is_negative[:, :64].diagonal().any()
    for i, j in is_negative[:, :64].nonzero().tolist():
        claim = pairs[j].claim
        assert claim is None or not claim.is_true_of(pairs[i].scene)


def test_near_misses_differ_from_the_caption() -> None:
    assert all(p.near_miss != p.caption for p in map(contrast.pair, range(300)))


def test_dense_targets_follow_the_connectors_order(tokens: transformers.PreTrainedTokenizerFast) -> None:
    model = vlm_model.build(tokens.get_vocab(), 0)
    labels = torch.from_numpy(dense_labels(train_vlm.dense_scene(3)))[None].long()
    targets = vlm_model.DenseHead.targets(labels)
    as_features = labels[:, 0].reshape(1, -1, 1).float()
    shuffled = model.model.connector.pixel_shuffle(as_features, vlm_model.SCALE_FACTOR)
    assert torch.equal(targets[:, 0].float(), shuffled)


def test_interrupted_run_continues_with_same_weights_and_step(tmp_path: pathlib.Path) -> None:
    def sitting(num_steps: int) -> tuple[Run, dict[str, torch.Tensor]]:
        torch.manual_seed(1)
        model = torch.nn.Linear(4, 4)
        masters = MasterWeights(model, 0.1, ())
        run = Run(tmp_path, "linear", Schedule(10, 0), (masters,), 1e9)
        for _ in range(num_steps):
            model(torch.ones(1, 4, dtype=model.weight.dtype)).sum().backward()
            run.advance()
        run.save()
        return run, masters.weights()

    first, weights = sitting(3)
    kept = {k: v.clone() for k, v in weights.items()}
    second, resumed = sitting(0)
    assert (first.step, second.step) == (3, 3)
    assert all(torch.equal(kept[k], resumed[k]) for k in kept)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("capabilities", "wanted"),
    [({"avx2": True}, "float32"), ({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16")],
)
def test_arithmetic_is_what_the_processor_multiplies_in(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], wanted: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    model = torch.nn.Linear(4, 4)
    masters = MasterWeights(model, 0.1, ())
    assert model.weight.dtype == getattr(torch, wanted)
    model(torch.ones(1, 4, dtype=model.weight.dtype)).sum().backward()
    masters.step(1.0)
    assert masters.weights()["weight"].dtype == torch.float32


def test_a_model_starts_from_another_whatever_its_vocabulary(
    reader: Reader, tokens: transformers.PreTrainedTokenizerFast
) -> None:
    wider = copy.deepcopy(tokens)
    assert wider.add_tokens(["circle is red"]) == 1
    model = vlm_model.build(wider.get_vocab(), 0)
    train_wide.start_from(CHECKPOINTS["vlm"], model, wider)
    own, shipped = model.state_dict(), reader.model.state_dict()
    table = "model.text_model.embed_tokens.weight"
    assert torch.equal(own[table][:-1], shipped[table])
    pieces = tokens.encode("circle is red", add_special_tokens=False)
    torch.testing.assert_close(own[table][-1], shipped[table][pieces].mean(0))
    layers = [name for name in own if own[name].shape == shipped[name].shape]
    assert len(layers) == len(own) - 2
    assert all(torch.equal(own[name], shipped[name]) for name in layers)


def test_schedule_warms_up_and_ends_at_its_budget() -> None:
    by_time, by_steps = Schedule(100, 2.0, 10), Schedule(100, 0, 10)
    assert by_time.factor(0, 0.0) < by_time.factor(20, 1.0)
    assert by_time.progress(10**6, 60.0) == 0.5
    assert by_steps.progress(50, 1e9) == 0.5
    assert by_steps.factor(99, 0.0) < 0.05


def test_weight_too_large_for_half_precision_is_refused(
    tokens: transformers.PreTrainedTokenizerFast, tmp_path: pathlib.Path
) -> None:
    model = vlm_model.build(tokens.get_vocab(), 0)
    weights = {k: v.detach().clone() for k, v in model.named_parameters()}
    weights["lm_head.weight"][0, 0] = 1e6
    with pytest.raises(ValueError, match=r"lm_head.weight holds 1000000"):
        save_vlm(weights, model, tokens, tmp_path)


def test_wilson_interval_matches_published_example() -> None:
    # 81 of 263: 0.2553 to 0.3662 (Newcombe 1998, Statistics in Medicine 17, table I, method 3)
    low, high = Score(81, 263).interval()
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_command_line_shows_defaults_and_units() -> None:
    for parser in (train_vlm.arguments(), train_clip.arguments()):
        assert isinstance(parser, argparse.ArgumentParser)
        assert "default: " in parser.format_help()
