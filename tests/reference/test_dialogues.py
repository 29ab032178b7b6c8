"""Packed conversations are what the chat templates of both models write."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import random

import pytest

from commands.shipped import CHECKPOINTS
from reference import dialogues
from reference.pictures import Item, render
from reference.real.tokens import CHAT_TEMPLATE
from reference.seeds import TRAINING_SEEDS

_LONG = 10_000


@pytest.fixture(scope="module", autouse=True)
def _fonts_and_photographs() -> None:
    """Both come with packages of the [train] extra."""
    for package in ("matplotlib", "skimage", "sklearn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; it comes with the extra train")


@pytest.fixture(scope="module")
def processor() -> object:
    transformers = pytest.importorskip("transformers", reason="training needs the [train] extra")
    return transformers.AutoProcessor.from_pretrained(CHECKPOINTS["vlm"])


_TURNS = {
    "alone": lambda s: s.shown and not s.before and s.greeting is None,
    "text first": lambda s: s.is_text_first and s.greeting is None,
    "earlier": lambda s: s.before and not s.is_text_first and s.greeting is None,
    "greeted": lambda s: s.greeting is not None and not s.before,
    "greeted, earlier": lambda s: s.greeting is not None and s.before and not s.is_text_first,
    "greeted, text first": lambda s: s.greeting is not None and s.is_text_first,
    "several": lambda s: len(s.shown) > 1,
    "no image": lambda s: not s.shown,
}
_OF_THE_REAL_MODEL = ("alone", "text first", "several")


def _samples(turns: str, mix: dialogues.Mix) -> list[dialogues.Sample]:
    samples = (dialogues.sample(seed, 3, mix) for seed in range(1600))
    found = (s for s in samples if s.asked and _TURNS[turns](s) and not any(isinstance(one, int) for one in s.shown))
    return list(itertools.islice(found, 4))


def _messages(sample: dialogues.Sample) -> list[dict[str, object]]:
    """Return the conversation that the first question ends, with its answer."""
    messages: list[dict[str, object]] = []
    images = [{"type": "image"} for _ in sample.shown]
    turns = [sample.greeting] if sample.greeting else []
    for enquiry in (*turns, *sample.before, sample.asked[0]):
        content: list[dict[str, str]] = [{"type": "text", "text": enquiry.question}]
        if enquiry is not sample.greeting:
            content = [*content, *images] if sample.is_text_first else [*images, *content]
            images = []
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": enquiry.answer}]})
    return messages


@pytest.mark.parametrize("turns", _TURNS)
def test_the_small_models_sequences_are_what_its_processor_gives(processor: object, turns: str) -> None:
    tokens = processor.tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    encode = lambda text: list(tokens.encode(text, add_special_tokens=False).ids)  # noqa: E731
    samples = _samples(turns, dialogues.SMALL_MIX)
    assert len(samples) == 4
    for sample in samples:
        batch = dialogues.pack([sample], dialogues.SMALL, encode, _LONG)
        text = processor.apply_chat_template(_messages(sample))  # type: ignore[attr-defined]
        images = [render(shown) for shown in sample.shown]  # type: ignore[arg-type]
        wanted = processor(text=text, images=images or None)["input_ids"][0]  # type: ignore[operator]
        got = batch.ids[0][(batch.segments[0] == 0) | (batch.segments[0] == 1)].tolist()
        assert got + encode("\n") == list(wanted)  # each turn of the template ends with a line


@pytest.mark.parametrize("turns", _OF_THE_REAL_MODEL)
def test_the_real_models_sequences_are_what_its_template_writes(turns: str) -> None:
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Environment(trim_blocks=False).from_string(CHAT_TEMPLATE)
    encode = lambda text: [ord(letter) for letter in text]  # noqa: E731
    for sample in _samples(turns, dialogues.REAL_MIX):
        wanted = template.render(messages=_messages(sample)).replace("<image>", dialogues.IMAGE_BLOCK)
        batch = dialogues.pack([sample], dialogues.REAL, encode, _LONG)
        seen = (batch.segments[0] == 0) | (batch.segments[0] == 1)
        assert f"{dialogues.REAL.start}{''.join(map(chr, batch.ids[0][seen]))}\n" == wanted


def test_what_is_learnt_is_the_answer_and_its_end() -> None:
    encode = lambda text: [ord(letter) for letter in text]  # noqa: E731
    sample = _samples("alone", dialogues.REAL_MIX)[0]
    batch = dialogues.pack([sample], dialogues.REAL, encode, _LONG)
    for number, enquiry in enumerate(sample.asked):
        learnt = "".join(chr(t) for t in batch.targets[batch.answers == number])
        assert learnt == f"{enquiry.answer}<|im_end|>"
    successors = [batch.ids[b, t + 1] for b, t in batch.rows]
    assert batch.targets.tolist() == successors


def test_what_makes_an_answer_right_weighs_more_than_the_words_around_it() -> None:
    encode = lambda text: [ord(letter) for letter in text]  # noqa: E731
    sample = next(
        s
        for s in _samples("alone", dialogues.READING_MIX)
        if s.asked[0].answer == f"The text says {s.asked[0].keys[0]}."
    )
    batch = dialogues.pack([dataclasses.replace(sample, asked=sample.asked[:1])], dialogues.SMALL, encode, _LONG)
    heavy = batch.weights > batch.weights.min()
    assert "".join(map(chr, batch.targets[heavy])) == f" {sample.asked[0].keys[0]}"
    assert batch.weights.max() == pytest.approx(4 * batch.weights.min())


def test_words_and_digits_are_asked_about_in_samples_made_for_them() -> None:
    samples = [dialogues.sample(seed, 3, dialogues.READING_MIX) for seed in range(40)]
    kinds = [enquiry.kind for s in samples for enquiry in (*s.before, *s.asked)]
    assert kinds.count("text") + kinds.count("digit") > 30


def test_questions_that_do_not_fit_are_left_out() -> None:
    encode = lambda text: [ord(letter) for letter in text]  # noqa: E731
    sample = max(_samples("alone", dialogues.REAL_MIX), key=lambda s: len(s.asked))
    whole = dialogues.pack([sample], dialogues.REAL, encode, _LONG)
    cut = dialogues.pack([sample], dialogues.REAL, encode, whole.ids.shape[1] - 1)
    assert len(cut.kinds) == len(whole.kinds) - 1
    assert cut.ids.shape[1] < whole.ids.shape[1]


def test_words_in_capitals_are_spelt() -> None:
    pieces: list[str] = []
    encode = lambda text: [pieces.append(text) or 0]  # type: ignore[func-returns-value]  # noqa: E731
    dialogues.spelt("The text says STOP9. Hello!", encode)
    assert pieces == ["The text says", " S", "T", "O", "P", "9", ". Hello!"]


def test_samples_are_made_of_training_seeds_and_are_the_same_each_time() -> None:
    assert all(dialogues.sample(seed, 4) == dialogues.sample(seed, 4) for seed in range(20))
    assert 1 << 35 in TRAINING_SEEDS


def test_it_is_what_the_turn_before_was_about() -> None:
    pairs = []
    for seed in range(60):
        rng = random.Random(seed)
        picture = dialogues.picture_for("shape", rng, dialogues.TRAINING)
        found = dialogues.follow_up(picture, rng, is_held_out=False)
        pairs += [(picture, *found)] if found else []
    assert len(pairs) > 30
    for picture, first, second in pairs:
        item = next(s for s in picture.shapes if s.name in first.answer)
        assert first.is_right(first.answer)
        assert second.is_right(second.answer)
        assert item.name in second.answer
        assert item.name not in second.question
        assert item.colour in second.keys or second.keys == (dialogues.part(item),)


def test_a_question_of_one_picture_among_several_says_which() -> None:
    rng = random.Random(0)
    red, blue = (_picture(c) for c in ("red", "blue"))
    asked = [dialogues.of_one((red, blue), rng, is_held_out=False) for _ in range(200)]
    colours = [e for e in asked if e is not None and e.others == tuple(dialogues.COLOURS)]
    assert {(e.keys[0], ("first" in e.question), ("second" in e.question)) for e in colours} == {
        ("red", True, False),
        ("blue", False, True),
    }


def _picture(colour: str) -> dialogues.Picture:
    ring = Item("shape", "ring", colour, (0, 0, 0), "large", (0.1, 0.1, 0.4, 0.4))
    return dialogues.Picture((128, 128), (ring,), "plain", ((255,) * 3, (255,) * 3), "train")


def test_without_a_picture_none_is_described() -> None:
    rng = random.Random(0)
    asked = [dialogues.unseen(rng, is_held_out=held) for held in (False, True) for _ in range(100)]
    assert {e.answer for e in asked if e.kind == "no image"} == {dialogues.NO_IMAGE}
    assert all(e.is_right(e.answer) for e in asked)
    assert len({e.kind for e in asked}) == 2


def test_a_picture_is_asked_which_only_where_one_picture_has_the_thing() -> None:
    found = 0
    for seed in range(100):
        rng = random.Random(seed)
        shown = [dialogues.picture_for("shape", rng, dialogues.TRAINING) for _ in range(2)]
        enquiry = dialogues.which((shown[0], shown[0]), rng, is_held_out=False)
        assert enquiry is None
        found += dialogues.which(tuple(shown), rng, is_held_out=False) is not None
    assert found > 20
