"""Packed conversations are what the chat templates of both models write."""

from __future__ import annotations

import importlib.util
import random

import pytest

from commands.shipped import CHECKPOINTS
from reference import dialogues
from reference.pictures import render
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


def _samples(is_text_first: bool) -> list[dialogues.Sample]:
    samples = (dialogues.sample(seed, 3) for seed in range(200))
    return [s for s in samples if s.is_text_first == is_text_first and not isinstance(s.shown[0], int)][:6]


def _messages(sample: dialogues.Sample, *, turns: int) -> list[dict[str, object]]:
    messages: list[dict[str, object]] = []
    for number, enquiry in enumerate(sample.asked[:turns]):
        content: list[dict[str, str]] = [{"type": "text", "text": enquiry.question}]
        if number == 0:
            images = [{"type": "image"} for _ in sample.shown]
            content = [*content, *images] if sample.is_text_first else [*images, *content]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": enquiry.answer}]})
    return messages


@pytest.mark.parametrize("is_text_first", [False, True])
def test_the_small_models_sequences_are_what_its_processor_gives(processor: object, is_text_first: bool) -> None:
    tokens = processor.tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    encode = lambda text: list(tokens.encode(text, add_special_tokens=False).ids)  # noqa: E731
    for sample in _samples(is_text_first):
        batch = dialogues.pack([sample], dialogues.SMALL, encode, _LONG)
        text = processor.apply_chat_template(_messages(sample, turns=1))  # type: ignore[attr-defined]
        images = [render(shown) for shown in sample.shown]  # type: ignore[arg-type]
        wanted = processor(text=text, images=images)["input_ids"][0]  # type: ignore[operator]
        seen = batch.segments[0] <= (0 if is_text_first else 1)
        seen &= batch.segments[0] >= 0
        got = batch.ids[0][seen].tolist()
        length = min(len(got), len(wanted))
        assert got[:length] == wanted[:length]
        assert abs(len(got) - len(wanted)) <= len(encode("\nUser: "))  # the template's line end, or the next turn


@pytest.mark.parametrize("is_text_first", [False, True])
def test_the_real_models_sequences_are_what_its_template_writes(is_text_first: bool) -> None:
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Environment(trim_blocks=False).from_string(CHAT_TEMPLATE)
    encode = lambda text: [ord(letter) for letter in text]  # noqa: E731
    for sample in _samples(is_text_first):
        wanted = template.render(messages=_messages(sample, turns=1)).replace("<image>", dialogues.IMAGE_BLOCK)
        batch = dialogues.pack([sample], dialogues.REAL, encode, _LONG)
        seen = (batch.segments[0] >= 0) & (batch.segments[0] <= (0 if is_text_first else 1))
        got = dialogues.REAL.start + "".join(map(chr, batch.ids[0][seen]))
        assert f"{got}\n".startswith(wanted) if is_text_first else f"{got}\n" == wanted


def test_what_is_learnt_is_the_answer_and_its_end() -> None:
    encode = lambda text: [ord(letter) for letter in text]  # noqa: E731
    sample = _samples(is_text_first=False)[0]
    batch = dialogues.pack([sample], dialogues.REAL, encode, _LONG)
    for number, enquiry in enumerate(sample.asked):
        learnt = "".join(chr(t) for t in batch.targets[batch.answers == number])
        assert learnt == f"{enquiry.answer}<|im_end|>"
    successors = [batch.ids[b, t + 1] for b, t in batch.rows]
    assert batch.targets.tolist() == successors


def test_questions_that_do_not_fit_are_left_out() -> None:
    encode = lambda text: [ord(letter) for letter in text]  # noqa: E731
    sample = max(_samples(is_text_first=False), key=lambda s: len(s.asked))
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


def test_a_picture_is_asked_which_only_where_one_picture_has_the_thing() -> None:
    found = 0
    for seed in range(100):
        rng = random.Random(seed)
        shown = [dialogues.picture_for("shape", rng, dialogues.TRAINING) for _ in range(2)]
        enquiry = dialogues.which((shown[0], shown[0]), rng, is_held_out=False)
        assert enquiry is None
        found += dialogues.which(tuple(shown), rng, is_held_out=False) is not None
    assert found > 20
