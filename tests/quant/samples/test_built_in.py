"""The samples that every stranger's model is fitted to and measured on: two halves with nothing in common."""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bundle.directory import Bundle, open_bundle
from bundle.prompt import Placeholder
from quant.calibration.feeds import shows_images
from quant.quality.evaluation import turns_of
from quant.samples import built_in
from quant.samples.built_in import (
    MOST_TEXTS,
    PHOTOGRAPHS,
    PROSE,
    built_in_samples,
    built_in_texts,
    photographs_of,
    texts_of,
)

HALVES = ("calibration", "evaluation")
MOST_BYTES = 400
"""Of a question and its answer: a model of 512 tokens has room for it beside a picture, even one token a byte."""


@pytest.fixture
def vlm(smolvlm_bundle: Path) -> Bundle:
    return open_bundle(smolvlm_bundle)


def test_the_halves_are_balanced_by_kind_and_share_nothing() -> None:
    fitted, measured = (texts_of(half) for half in HALVES)
    assert Counter(text.task for text in fitted) == Counter(text.task for text in measured)
    assert not {text.question for text in fitted} & {text.question for text in measured}
    assert not {text.answer for text in fitted} & {text.answer for text in measured}
    assert len({text.question for text in (*fitted, *measured)}) == len(fitted) + len(measured)
    pictures = [{each.image for each in photographs_of(half)} for half in HALVES]
    assert len(pictures[0]) == len(pictures[1]) == len(PHOTOGRAPHS.read_text().splitlines()) / 2
    assert not pictures[0] & pictures[1]


@pytest.mark.parametrize("half", HALVES)
def test_a_half_has_code_lists_numbers_and_other_scripts(half: str) -> None:
    texts = texts_of(half)
    assert {"fact", "code", "list", "arithmetic", "dialogue", "instruction", *PROSE} <= {text.task for text in texts}
    letters = "".join(text.answer for text in texts)
    scripts = {unicodedata.name(letter, "").split()[0] for letter in letters if letter.isalpha()}
    assert {"LATIN", "CJK", "CYRILLIC", "ARABIC", "HIRAGANA"} <= scripts
    assert all(len((text.question + text.answer).encode()) <= MOST_BYTES for text in texts)


@pytest.mark.parametrize("half", HALVES)
def test_questions_of_a_half_are_of_texts_and_of_photographs_that_open(vlm: Bundle, half: str) -> None:
    pytest.importorskip("skimage")
    found = built_in_samples(vlm, half)
    assert found.source == f"built-in {half} texts and photographs"
    pictured = [question for question in found.questions if question.images]
    assert [turns_of(question)[0].parts[0] for question in pictured] == [Placeholder.IMAGE] * len(pictured)
    # Each photograph is 17 tiles to this model: four are taken, however many there are.
    assert len(pictured) == 4
    assert len(found.questions) == len(texts_of(half)) + 4
    assert found.num_verdicts == 0
    assert "no right answers" in found.no_accuracy


@pytest.mark.parametrize("half", HALVES)
def test_the_texts_of_a_half_are_the_same_without_its_photographs(vlm: Bundle, half: str) -> None:
    found = built_in_texts(vlm, half)
    assert [(q.question, q.answer) for q in found.questions] == [(t.question, t.answer) for t in texts_of(half)]  # type: ignore[attr-defined]
    assert not shows_images(found)
    assert (found.source, found.num_verdicts) == (f"built-in {half} texts", 0)
    assert len(found.questions) == MOST_TEXTS
    few = built_in_texts(vlm, half, 15).questions
    assert len(few) == 15
    assert len({question.task for question in few}) > 10


def test_every_photograph_is_where_scikit_image_keeps_it() -> None:
    pytest.importorskip("skimage")
    folder = built_in._photograph_folder()
    assert folder is not None
    for half in HALVES:
        assert [each.image for each in photographs_of(half) if not (folder / each.image).is_file()] == []


@pytest.mark.parametrize("half", HALVES)
def test_a_dual_encoder_gets_captions_and_prose_and_no_search(clip_bundle: Path, half: str) -> None:
    pytest.importorskip("skimage")
    found = built_in_samples(open_bundle(clip_bundle), half)
    assert len(found.captions) == len(photographs_of(half)) == 10
    assert set(found.texts) == {text.answer for text in texts_of(half) if text.task in PROSE}
    assert found.questions == ()
    assert found.num_verdicts == 0


def test_without_scikit_image_texts_remain_and_the_source_says_why(
    vlm: Bundle, clip_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    found = built_in_samples(vlm, "evaluation")
    assert len(found.questions) == len(texts_of("evaluation"))
    assert not shows_images(found)
    assert found.source == (
        "built-in evaluation texts; no photographs, for scikit-image is missing "
        "(pip install -e '.[photographs]' in a checkout of PocketVLM)"
    )
    dual = built_in_samples(open_bundle(clip_bundle), "evaluation")
    assert (list(dual.captions), bool(dual.texts)) == ([], True)


def test_photographs_that_scikit_image_no_longer_has_are_left_out(
    vlm: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(built_in, "_photograph_folder", lambda: tmp_path)
    found = built_in_samples(vlm, "evaluation")
    assert not shows_images(found)
    assert found.source.endswith("no photographs, for scikit-image's are not where they were")


def test_questions_beyond_a_models_context_are_left_out(vlm: Bundle) -> None:
    assert vlm.manifest.decoder is not None
    narrow = vlm.manifest.decoder.model_copy(update={"max_positions": 120})
    kept = built_in_samples(replace(vlm, manifest=vlm.manifest.model_copy(update={"decoder": narrow})), "evaluation")
    all_of_them = built_in_samples(vlm, "evaluation")
    assert 0 < len(kept.questions) < len(all_of_them.questions)
    # This model has a token for each byte: what is left leaves room for the template.
    assert max(len((each.question + each.answer).encode()) for each in kept.questions) < 120  # type: ignore[attr-defined]
    assert not shows_images(kept)


def test_questions_that_a_vocabulary_cannot_spell_are_left_out(vlm: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = built_in.PromptBuilder.from_bundle(vlm)
    (unknown,) = builder.tokenizer.encode("0")  # as if there were no figures
    builder.tokenizer.unknown_id = unknown
    monkeypatch.setattr(built_in.PromptBuilder, "from_bundle", lambda bundle: builder)
    kept = built_in_samples(vlm, "evaluation").questions
    assert kept
    assert not any("0" in each.question + each.answer for each in kept)  # type: ignore[attr-defined]
    assert any("0" in text.question + text.answer for text in texts_of("evaluation"))
