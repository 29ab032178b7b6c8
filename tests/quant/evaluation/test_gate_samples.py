from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from bundle.directory import read_manifest
from bundle.errors import QuantizationError
from bundle.manifest import Manifest
from bundle.prompt import Placeholder, Turn
from quant.evaluation.gate_samples import FileQuestion, read_samples
from quant.quality.evaluation import turns_of


@pytest.fixture
def vlm(smolvlm_bundle: Path) -> Manifest:
    return read_manifest(smolvlm_bundle)


@pytest.fixture
def clip(clip_bundle: Path) -> Manifest:
    return read_manifest(clip_bundle)


@pytest.fixture
def write(tmp_path: Path):
    """Write lines as a file of samples beside two images."""
    Image.new("RGB", (3, 2), "red").save(tmp_path / "red.png")
    (tmp_path / "more").mkdir()
    Image.new("RGB", (5, 4), "blue").save(tmp_path / "more" / "blue.jpg")

    def lines(*rows: object) -> Path:
        path = tmp_path / "samples.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return lines


ASKED = {"image": "red.png", "question": "Which colour?", "answer": "red"}


def test_questions_have_their_images_texts_and_tasks(write, vlm: Manifest) -> None:
    both = {"image": ["red.png", "more/blue.jpg"], "question": "Which?", "answer": "first", "task": "pair"}
    evaluation = read_samples(write(ASKED, both, {**ASKED, "image": []}), vlm)
    one, two, none = evaluation.questions
    assert [(q.task, q.answer) for q in evaluation.questions] == [
        ("questions", "red"),
        ("pair", "first"),
        ("questions", "red"),
    ]
    assert [[image.size for image in q.images] for q in (one, two, none)] == [[(3, 2)], [(3, 2), (5, 4)], []]
    assert turns_of(two) == [Turn("user", (Placeholder.IMAGE, Placeholder.IMAGE, "Which?"))]
    assert (evaluation.source, evaluation.num_samples) == ("samples.jsonl", 3)


@pytest.mark.parametrize(
    ("reply", "is_right"),
    [
        ("a cat", True),
        (" A  Cat.", True),
        ("a cat\n", True),
        ("a cat .", True),
        ("cat", False),
        ("a cat. No", False),
        ("", False),
    ],
)
def test_a_reply_is_right_apart_from_case_spaces_and_a_final_period(reply: str, is_right: bool) -> None:
    assert FileQuestion.plain("any", (), "What?", "A cat.").is_right(reply) is is_right


def test_captions_and_labels_become_recall_and_zero_shot(write, clip: Manifest) -> None:
    assert clip.dual is not None
    rows = [
        {"image": "red.png", "caption": "a red thing"},
        {"image": "red.png", "label": "red"},
        {"image": "more/blue.jpg", "label": "blue", "caption": "a blue thing"},
    ]
    evaluation = read_samples(write(*rows), clip)
    assert [sample.caption for sample in evaluation.captions] == ["a red thing", "a blue thing"]
    labelled = evaluation.labelled["label"]
    # The texts that /v1/classify would score.
    assert list(labelled.candidates) == [clip.dual.prompt_template.format(label) for label in ("blue", "red")]
    assert [sample.caption for sample in labelled.samples] == [labelled.candidates[1], labelled.candidates[0]]
    assert [sample.image.size for sample in labelled.samples] == [(3, 2), (5, 4)]


def test_braces_in_a_template_and_in_a_label_are_letters(write, clip: Manifest) -> None:
    assert clip.dual is not None
    braced = clip.dual.model_copy(update={"prompt_template": "a {photo} of {}"})
    rows = [{"image": "red.png", "label": "{red}"}, {"image": "more/blue.jpg", "label": "blue"}]
    evaluation = read_samples(write(*rows), clip.model_copy(update={"dual": braced}))
    assert list(evaluation.labelled["label"].candidates) == ["a {photo} of blue", "a {photo} of {red}"]


def test_images_are_opened_when_they_are_used(write, vlm: Manifest, tmp_path: Path) -> None:
    (question,) = read_samples(write(ASKED), vlm).questions
    Image.new("RGB", (7, 7)).save(tmp_path / "red.png")
    assert question.images[0].size == (7, 7)
    (tmp_path / "red.png").unlink()
    with pytest.raises(QuantizationError, match=r"samples.jsonl, line 1: .*red.png cannot be read"):
        _ = question.images


def test_blank_lines_are_left_out_and_counted(write, vlm: Manifest) -> None:
    with pytest.raises(QuantizationError, match="line 3 is not JSON"):
        read_samples(write(ASKED, "", "{"), vlm)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("[1, 2", r"line 2 is not JSON: .* character 6"),
        ("[" * 100_000, r"line 2 cannot be read as JSON"),
        ({**ASKED, "image": "red\x00.png"}, r"line 2: .* is no path: embedded null byte"),
        ("[1, 2]", r"line 2 is no JSON object but '\[1, 2\]'"),
        (
            {"image": "red.png", "prompt": "Which?"},
            r"line 2 has the columns image, prompt. Wanted for this model: .*vqa: question, answer or answers",
        ),
        ({**ASKED, "id": "x"}, r"line 2 has the columns answer, id, image, question \(unknown: id\)"),
        ({**ASKED, "answer": 7}, r"line 2: answer is 7, not a text"),
        ({**ASKED, "question": " "}, r"line 2: question is ' ', not a text"),
        ({**ASKED, "image": 3}, r"line 2: image is 3, not a path"),
        ({**ASKED, "image": "green.png"}, r"line 2: .*green.png cannot be read: No such file"),
        ({**ASKED, "image": "more"}, r"line 2: .*more cannot be read"),
        ({**ASKED, "image": "samples.jsonl"}, r"line 2: .*samples.jsonl: .* not an image"),
    ],
)
def test_a_bad_line_is_named_with_its_number(write, vlm: Manifest, row: object, words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        read_samples(write(ASKED, row), vlm)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (ASKED, r"columns answer, image, question. Wanted for this model: caption: caption or captions . label: label"),
        ({"image": "red.png"}, "nothing to find it by; add a caption or a label"),
        ({"image": "red.png", "label": "red"}, "every label makes .*red'; zero-shot needs two"),
    ],
)
def test_a_dual_encoder_wants_captions_or_labels(write, clip: Manifest, row: object, words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        read_samples(write(row), clip)


def test_a_file_without_samples_or_text_is_refused(write, vlm: Manifest, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="holds no samples"):
        read_samples(write(""), vlm)
    with pytest.raises(QuantizationError, match="cannot be read: No such file"):
        read_samples(tmp_path / "absent.jsonl", vlm)
    with pytest.raises(QuantizationError, match="is not UTF-8"):
        read_samples(tmp_path / "red.png", vlm)
