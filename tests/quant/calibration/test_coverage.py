from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bundle.directory import open_bundle
from quant.calibration.coverage import MOST_UNSEEN, unlike, unseen_share
from quant.quality.evaluation import Evaluation, Labelled


def test_the_share_is_of_tokens_as_often_as_they_occur(smolvlm_bundle: Path, asked: type) -> None:
    # A byte is a token; each question reads "Say ANSWER." and is followed by its answer.
    bundle = open_bundle(smolvlm_bundle)
    fitted, measured = (Evaluation(questions=[asked(answer)]) for answer in ("aab", "abzz"))
    assert unseen_share(bundle, fitted, fitted) == 0
    assert unseen_share(bundle, fitted, measured) == pytest.approx(4 / len("Say abzz." + "abzz"))


def test_captions_labels_and_texts_alone_count_as_well(clip_bundle: Path, captioned: type) -> None:
    bundle, image = open_bundle(clip_bundle), Image.new("RGB", (9, 9))
    fitted = Evaluation(captions=[captioned(image, "abcd")], texts=["e"])
    labels = {"letter": Labelled(["xy"], [captioned(image, "xy")])}
    assert unseen_share(bundle, fitted, Evaluation(captions=[captioned(image, "abcd")], texts=["e"])) == 0
    # The tokenizer of this bundle marks the letter that ends a word.
    assert unseen_share(bundle, fitted, Evaluation(texts=["abcd", "e"], labelled=labels)) == pytest.approx(2 / 7)


def test_calibration_is_judged_by_the_samples_that_it_takes(smolvlm_bundle: Path, asked: type) -> None:
    bundle = open_bundle(smolvlm_bundle)
    fitted = Evaluation(questions=[asked("z" if at == 127 else "a") for at in range(128)])  # every other one is taken
    assert unseen_share(bundle, fitted, Evaluation(questions=[asked("z")])) == pytest.approx(2 / len("Say z." + "z"))


def test_samples_without_a_text_say_nothing(clip_bundle: Path) -> None:
    bundle = open_bundle(clip_bundle)
    assert unseen_share(bundle, Evaluation(), Evaluation()) is None
    assert unlike(bundle, Evaluation(), Evaluation()) == ""


def test_another_language_is_told_with_the_share_and_what_to_do(smolvlm_bundle: Path, asked: type) -> None:
    bundle = open_bundle(smolvlm_bundle)
    english = Evaluation(questions=[asked("the quick brown fox jumps over the lazy dog")], source="english.jsonl")
    russian = Evaluation(questions=[asked("съешь же ещё этих мягких французских булок")], source="russian.jsonl")
    share = unseen_share(bundle, english, russian)
    assert share is not None
    assert share > MOST_UNSEEN
    warning = unlike(bundle, english, russian)
    assert warning.startswith(f"{share:.0%} of the tokens of russian.jsonl never occur in english.jsonl")
    assert "--calibration" in warning
    assert unlike(bundle, russian, russian) == ""
