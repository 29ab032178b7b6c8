"""Files of every format and layout, and what is said of bad ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from bundle.errors import QuantizationError
from quant.evaluation.formats import FORMATS
from quant.evaluation.layouts import Beside
from quant.evaluation.pictures import InlineImage
from quant.evaluation.reading import read_file

Write = Callable[..., Path]
VQA = {"image": "red.png", "question": "Which colour?", "answer": "red"}
CHOICE = {**VQA, "choices": ["blue", "red"]}
SEARCH = {"query": "a red thing", "relevant": ["red.png"]}
OF_FORMAT = {
    "choice": CHOICE,
    "vqa": {**VQA, "metric": "anls"},
    "ocr": {"image": "red.png", "text": "STOP"},
    "caption": {"image": "red.png", "captions": ["a red thing", "red"]},
    "label": {"image": "red.png", "label": "red"},
    "search": SEARCH,
    "document": {"document": "more/blue.jpg"},
}


def test_a_row_of_each_format_is_known_by_its_columns(write: Write) -> None:
    assert OF_FORMAT.keys() == FORMATS.keys()
    for name, row in OF_FORMAT.items():
        rows = [row, SEARCH] if name == "document" else [row]
        assert read_file(write(*rows)).samples[0].format == name


def test_a_row_says_what_is_asked_and_what_is_right(write: Write) -> None:
    example = {"image": "more/blue.jpg", "question": "Which?", "answer": "blue"}
    row = {**CHOICE, "image": ["red.png", "more/blue.jpg"], "task": "colour", "examples": [example]}
    (sample,) = read_file(write(row)).samples
    assert (sample.task, sample.metric, sample.choices, sample.answers) == ("colour", "choice", ("blue", "red"), ("B",))
    assert [image.open().size for image in sample.shown.images] == [(3, 2), (5, 4)]
    assert (sample.examples[0].answer, sample.examples[0].shown.images[0].open().size) == ("blue", (5, 4))
    assert sample.right == "B. red"


@pytest.mark.parametrize(
    ("answer", "letters"), [("B", "B"), ("b", "B"), (1, "B"), ("red", "B"), (["A", "red"], "AB"), (["blue"], "A")]
)
def test_a_right_choice_is_a_letter_a_text_or_a_place(write: Write, answer: object, letters: str) -> None:
    assert "".join(read_file(write({**CHOICE, "answer": answer})).samples[0].answers) == letters


def test_a_letter_that_is_a_choice_is_read_as_the_text(write: Write) -> None:
    row = {"question": "Which vitamin?", "choices": ["C", "A"], "answer": "A"}
    assert read_file(write(row)).samples[0].answers == ("B",)


def test_images_may_be_written_into_the_file(write: Write, tmp_path: Path) -> None:
    data = (tmp_path / "red.png").read_bytes()
    row = {**VQA, "image": f"data:image/png;base64,{base64.b64encode(data).decode()}"}
    (image,) = read_file(write(row)).samples[0].shown.images
    assert isinstance(image, InlineImage)
    assert image.open().size == (3, 2)


def test_frames_and_videos_are_kept_apart_from_images(write: Write, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"video")
    frames = {**VQA, "frames": ["red.png", "more/blue.jpg"]}
    video = {"video": "clip.mp4", "question": "What happens?", "answers": ["nothing"]}
    first, second = read_file(write(frames, video)).samples
    assert (len(first.shown.images), len(first.shown.frames)) == (1, 2)
    assert second.shown.video is not None
    assert second.shown.video.data() == b"video"


def test_a_limit_takes_samples_evenly_and_every_document(write: Write) -> None:
    rows = [{**VQA, "answer": str(number)} for number in range(10)]
    found = read_file(write(*rows), limit=4)
    assert [sample.answers[0] for sample in found.samples] == ["0", "2", "5", "7"]
    assert found.num_rows == 10
    searched = read_file(write(SEARCH, SEARCH, {"document": "more/blue.jpg"}), limit=1)
    assert [sample.format for sample in searched.samples] == ["search", "document"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "holds no samples"),
        (["{"], "line 1 is not JSON"),
        ([VQA, {**VQA, "colour": "x"}], r"line 2 has the columns .* \(unknown: colour\).*format vqa"),
        ([{"image": "red.png", "question": "What?"}], "line 1 has the columns image, question. Wanted"),
        ([{"question": "What?", "choices": ["a", "b"]}], r"\(lacking: answer\).*format choice"),
        ([{**VQA, "answers": ["red"]}], r"2 of answer, answers, of which one is wanted"),
        ([VQA, {"image": "red.png", "label": "red"}], "line 2 is of the format label, and .*line 1 of vqa"),
        ([{**VQA, "image": "gone.png"}], r"line 1: .*gone.png cannot be read: No such file"),
        ([{**VQA, "image": "data:image/png,xx"}], "is not in base64"),
        ([{**VQA, "image": "data:image/png;base64,&&"}], "line 1: the image in it is no base64"),
        ([{**VQA, "answers": [], "answer": ""}], "line 1"),
        ([{"image": "red.png", "question": "Q", "answers": []}], "answers is \\[\\], not a list of texts"),
        ([{**VQA, "metric": "bleu"}], "metric is 'bleu'; there are exact, contains, vqa"),
        ([{**CHOICE, "answer": "green"}], "answer is 'green', none of the 2 choices"),
        ([{**CHOICE, "answer": 2}], "answer is 2, none of the 2 choices"),
        ([{**CHOICE, "answer": True}], "answer is True"),
        ([{**CHOICE, "choices": ["red", "red"]}], "choices holds 2 texts, 1 of them different"),
        ([{**VQA, "frames": ["red.png"], "video": "red.png"}], "frames and a video"),
        ([{**VQA, "video": "gone.mp4"}], "gone.mp4 cannot be read"),
        ([{**VQA, "examples": [{"question": "Q"}]}], "an example is"),
        ([{"query": "x", "relevant": []}], "nothing is relevant"),
        ([{"query": "x", "relevant": {"red.png": -1}}], "relevant is"),
        ([{"query": "x", "relevant": {"red.png": 0}}], "nothing is relevant"),
        ([{"document": "red.png"}], "nothing that is searched for"),
    ],
)
def test_a_bad_file_is_named_with_its_line(write: Write, rows: list[object], words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        read_file(write(*rows))


def test_tables_have_columns_by_name(write: Write) -> None:
    path = write("image,question,choices,answer,task", 'red.png,Which?,"[""blue"", ""red""]",B,', name="samples.csv")
    (sample,) = read_file(path).samples
    assert (sample.choices, sample.answers, sample.task) == (("blue", "red"), ("B",), "questions")
    with pytest.raises(QuantizationError, match="line 2 has more cells than the header, which names 1"):
        read_file(write("question", "Which?,red", name="more.csv"))


def test_mmbench_has_choices_in_columns_and_images_in_base64(write: Write) -> None:
    file = BytesIO()
    Image.effect_noise((40, 40), 90).save(file, "PNG")
    inline = base64.b64encode(file.getvalue()).decode()
    head = "index\tquestion\thint\tA\tB\tC\tanswer\tcategory\timage"
    path = write(head, f"7\tWhich?\tLook.\tred\tblue\t\tB\tcolour\t{inline}", name="mmbench.tsv")
    (sample,) = read_file(path).samples
    assert (sample.question, sample.choices, sample.answers, sample.task) == (
        "Look.\nWhich?",
        ("red", "blue"),
        ("B",),
        "colour",
    )
    assert sample.shown.images[0].open().size == (40, 40)
    with pytest.raises(QuantizationError, match="line 3 has no answer"):
        read_file(write(head, "7\tW\t\ta\tb\t\tB\tc\t", "8\tW\t\ta\tb\t\t\tc\t", name="test.tsv"))


def test_flickr_captions_are_joined_by_image(write: Write) -> None:
    table = write("image,caption", "red.png,a red thing", "more/blue.jpg,blue", "red.png,red", name="captions.csv")
    token = write("red.png#0\ta red thing", "more/blue.jpg#0\tblue", "red.png#1\tred", name="results.token")
    for path in (table, token):
        assert [sample.answers for sample in read_file(path).samples] == [("a red thing", "red"), ("blue",)]
    with pytest.raises(QuantizationError, match="line 1 is not image#number"):
        read_file(write("red.png a red thing", name="bad.token"))


def test_vqa_v2_has_questions_and_answers_in_two_files(write: Write, tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "COCO_val2014_000000000042.jpg")
    pairs = [(420, "yes", "yes/no"), (421, "two", "number")]
    rows = [{"image_id": 42, "question_id": number, "question": f"Which {number}?"} for number, *_ in pairs]
    asked = {"data_subtype": "val2014", "questions": rows}
    given = {
        "annotations": [
            {"question_id": number, "image_id": 42, "answer_type": kind, "answers": [{"answer": answer}] * 10}
            for number, answer, kind in reversed(pairs)  # by id, in whatever order
        ]
    }
    questions = write(json.dumps(asked), name="questions.json")
    beside = Beside(annotations=write(json.dumps(given), name="annotations.json"))
    samples = read_file(questions, beside).samples
    assert [(sample.task, sample.answers) for sample in samples] == [
        ("yes/no", ("yes",) * 10),
        ("number", ("two",) * 10),
    ]
    assert {sample.metric for sample in samples} == {"vqa"}
    with pytest.raises(QuantizationError, match="--annotations"):
        read_file(questions)
    absent = Beside(annotations=write(json.dumps({"annotations": []}), name="none.json"))
    with pytest.raises(QuantizationError, match=r"question 1: .* has no answers to question_id 420"):
        read_file(questions, absent)


def test_coco_captions_and_karpathys_splits(write: Write) -> None:
    coco = {
        "images": [{"id": 5, "file_name": "red.png"}, {"id": 6, "file_name": "gone.jpg"}],
        "annotations": [{"image_id": 5, "caption": "red"}, {"image_id": 5, "caption": "a red thing"}],
    }
    (sample,) = read_file(write(json.dumps(coco), name="coco.json")).samples
    assert sample.answers == ("red", "a red thing")
    images = [
        {"filename": "blue.jpg", "filepath": "more", "split": "test", "sentences": [{"raw": "blue"}]},
        {"filename": "gone.jpg", "split": "train", "sentences": [{"raw": "gone"}]},
    ]
    (sample,) = read_file(write(json.dumps({"images": images}), name="karpathy.json")).samples
    assert (sample.answers, sample.shown.images[0].open().size) == (("blue",), (5, 4))


def test_science_qa_has_problems_by_name_and_folders_of_images(write: Write, tmp_path: Path) -> None:
    (tmp_path / "test" / "12").mkdir(parents=True)
    Image.new("RGB", (6, 6)).save(tmp_path / "test" / "12" / "image.png")
    problem = {"question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "Look.", "subject": "physics"}
    document = {
        "12": {**problem, "image": "image.png", "split": "test", "lecture": "..."},
        "13": {**problem, "image": None, "split": "test"},
        "14": {**problem, "image": None, "split": "train"},
    }
    first, second = read_file(write(json.dumps(document), name="problems.json")).samples
    assert (first.question, first.answers, first.task) == ("Look.\nWhich?", ("B",), "physics")
    assert (len(first.shown.images), len(second.shown.images)) == (1, 0)


def test_an_unknown_document_lists_the_layouts(write: Write) -> None:
    with pytest.raises(QuantizationError, match=r"of no layout that is known; it holds data. .*ScienceQA"):
        read_file(write(json.dumps({"data": []}), name="some.json"))
    assert len(read_file(write(json.dumps([VQA, VQA]), name="list.json")).samples) == 2
    with pytest.raises(QuantizationError, match="entry 2 is no JSON object"):
        read_file(write(json.dumps([VQA, 3]), name="list.json"))
