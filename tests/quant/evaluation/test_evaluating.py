"""A respondent by rule on small files: what is asked, what is kept, and what the report says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.errors import MachineError, MissingExtraError, QuantizationError
from quant.evaluation.asking import Clip, RefusedError, Said, Vectors, question_of
from quant.evaluation.evaluating import Options, evaluate
from quant.evaluation.page import evaluation_page
from quant.evaluation.reading import read_file
from quant.evaluation.replies import ReplyFile
from quant.evaluation.report import EvaluationReport, Marks, marks_of
from quant.evaluation.sample import Sample
from quant.quality.measures import bootstrap

Write = Callable[..., Path]
ASKED = {"image": "red.png", "question": "Which colour?", "answer": "red", "task": "colour"}


@dataclass
class ByRule:
    """Answers what its rule says, and embeds a text as the letter that it begins with, an image as its first byte's."""

    rule: Callable[[Sequence[Said]], str] = lambda said: "red"
    embeds: bool = False
    answers: bool | None = None
    identity: str = "1"
    name: str = "by-rule"
    template: str = "{}"
    asked: list[Sequence[Said]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.answers = not self.embeds if self.answers is None else self.answers

    async def answer(self, conversation: Sequence[Said], max_tokens: int) -> str:
        await asyncio.sleep(0)
        self.asked.append(conversation)
        return self.rule(conversation)

    async def embed(self, inputs: Sequence[str | bytes]) -> Vectors:
        letters = [each[0] if isinstance(each, str) else _letter(each) for each in inputs]
        return np.array([[letter == other for other in "abcdefgh"] for letter in letters], np.float32)


def _letter(data: bytes) -> str:
    """Return the letter that an image's red stands for."""
    import io

    with Image.open(io.BytesIO(data)) as image:
        pixel = image.convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return "abcdefgh"[int(pixel[0])]


@pytest.fixture
def evaluated(tmp_path: Path) -> Callable[..., EvaluationReport]:
    """Evaluate a respondent on a file."""

    def run(
        file: Path, respondent: ByRule, options: Options | None = None, limit: int | None = None
    ) -> EvaluationReport:
        samples, replies = read_file(file, limit=limit), tmp_path / "out" / "replies.jsonl"
        return asyncio.run(evaluate(samples, respondent, options or Options(), replies, "a rule", lambda line: None))

    return run


def lettered(tmp_path: Path, letters: str) -> None:
    for place, letter in enumerate(letters):
        Image.new("RGB", (2, 2), ("abcdefgh".index(letter), 0, 0)).save(tmp_path / f"{letter}{place}.png")


def test_figures_are_told_by_task_with_n_and_interval(write: Write, evaluated) -> None:
    rows = [{**ASKED, "answer": "red" if at % 4 else "blue", "task": f"task {at % 2}"} for at in range(20)]
    report = evaluated(write(*rows), ByRule())
    assert {name: figures["exact"].n for name, figures in report.tasks.items()} == {
        "all": 20,
        "task 0": 10,
        "task 1": 10,
    }
    found = report.tasks["all"]["exact"]
    expected = bootstrap([1.0] * 15 + [0.0] * 5)
    assert found.mean == 0.75
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.1)
    assert report.tasks["task 1"]["exact"].low == 1 - 3 / 10  # ten right ones leave three tenths open
    assert report.shortfalls[0].place.endswith("line 1")
    assert {each.right for each in report.shortfalls} == {"blue"}


def test_choices_are_asked_with_letters_and_instruction(write: Write, evaluated) -> None:
    row = {"image": "red.png", "question": "Which?", "choices": ["blue", "red"], "answer": "red"}
    model = ByRule(lambda said: "B")
    report = evaluated(write(row), model)
    assert model.asked[0][-1].parts[-1] == "Which?\nA. blue\nB. red\nAnswer with the letter of the right choice alone."
    assert {name: figure.mean for name, figure in report.tasks["all"].items()} == {"choice": 1, "unread": 0}
    assert question_of(read_file(write(row)).samples[0], instruction="Say it.").endswith("B. red\nSay it.")


def test_examples_images_and_frames_come_in_order(write: Write, evaluated, tmp_path: Path) -> None:
    example = {"image": "more/blue.jpg", "question": "Which?", "answer": "blue"}
    model = ByRule()
    evaluated(write({**ASKED, "examples": [example], "frames": ["red.png", "red.png"]}), model)
    red, blue = (tmp_path / "red.png").read_bytes(), (tmp_path / "more" / "blue.jpg").read_bytes()
    assert list(model.asked[0]) == [
        Said("user", (blue, "Which?")),
        Said("assistant", ("blue",)),
        Said("user", (red, Clip((red, red), is_list=True), "Which colour?")),
    ]


def test_labels_are_asked_of_a_model_that_answers(write: Write, evaluated) -> None:
    model = ByRule()
    report = evaluated(write(*({"image": "red.png", "label": label} for label in ("red", "blue"))), model)
    assert str(model.asked[0][-1].parts[-1]).endswith("Answer with one of these alone: blue, red.")
    assert report.tasks["all"]["exact"].mean == 0.5


def test_a_run_that_stopped_goes_on_where_it_was(write: Write, evaluated, tmp_path: Path) -> None:
    file = write(*({**ASKED, "question": f"Which {at}?"} for at in range(6)))

    def fails(said: Sequence[Said]) -> str:
        if "3" in str(said[-1].parts[-1]):
            raise MachineError("gone")
        return "red"

    with pytest.raises(MachineError):
        evaluated(file, ByRule(fails), Options(at_once=1))
    replies = tmp_path / "out" / "replies.jsonl"
    assert len(replies.read_text().splitlines()) == 1 + 3
    with replies.open("a") as cut:
        cut.write('{"number": 4, "te')  # as a stop leaves it
    model = ByRule()
    report = evaluated(file, model, Options(at_once=2))
    assert sorted(str(said[-1].parts[-1]) for said in model.asked) == ["Which 3?", "Which 4?", "Which 5?"]
    assert report.tasks["all"]["exact"].mean == 1
    again = ByRule()
    assert evaluated(file, again).tasks == report.tasks
    assert again.asked == []


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"identity": "2"}, "identity was '1' and is '2'"),
        ({"options": Options(max_tokens=9)}, "max_tokens was 64 and is 9"),
        ({"options": Options(reductions={"kv_budget": 0.5})}, "kv_budget was None and is 0.5"),
    ],
)
def test_replies_of_another_run_are_refused(write: Write, evaluated, other: dict[str, object], told: str) -> None:
    file = write(ASKED)
    evaluated(file, ByRule())
    with pytest.raises(QuantizationError, match=rf"another run \({told}\); pass --overwrite"):
        evaluated(file, ByRule(identity=str(other.get("identity", "1"))), other.get("options"))


def test_a_file_that_holds_no_replies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text('{"file": 1}\n{"number": 1, "x": 2}\n')
    with pytest.raises(QuantizationError, match="line 2 is no reply"):
        ReplyFile(path, {"file": 1})


def test_what_a_model_refuses_counts_as_wrong_and_is_told_first(write: Write, evaluated) -> None:
    def refuses(said: Sequence[Said]) -> str:
        if "1" in str(said[-1].parts[-1]):
            raise RefusedError("too long")
        return "green" if "0" in str(said[-1].parts[-1]) else "red"

    report = evaluated(write(*({**ASKED, "question": f"Which {at}?"} for at in range(4))), ByRule(refuses))
    assert (report.num_refused, report.tasks["all"]["exact"].mean) == (1, 0.5)
    assert [each.refused for each in report.shortfalls] == ["too long", ""]
    page = evaluation_page(report)
    assert "not taken: too long" in page
    assert "1 questions were not taken" in page


def test_a_model_that_takes_nothing_has_no_figures(write: Write, evaluated) -> None:
    def refuses(said: Sequence[Said]) -> str:
        raise RefusedError("no images here")

    with pytest.raises(QuantizationError, match="took none of 1 questions; of the first it said: no images here"):
        evaluated(write(ASKED), ByRule(refuses))


def test_error_rates_weigh_letters_not_samples(sample: Callable[..., Sample]) -> None:
    from quant.evaluation.replies import Reply

    samples = [sample("abcdefghij", metric="cer"), sample("ab", metric="cer")]
    marks = {each.metric: each for each in marks_of(samples, [Reply(1, "abcdefghij", "", 0), Reply(2, "xy", "", 0)])}
    assert dict(marks["cer"].figures())["all"].mean == pytest.approx(2 / 12)
    assert dict(marks["exact"].figures())["all"].mean == 0.5


def test_resamples_in_pieces_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random(37)
    whole = bootstrap(values)
    monkeypatch.setattr("quant.quality.measures._INDICES_AT_ONCE", 100)
    assert bootstrap(values) == whole
    drawn = np.random.default_rng(0).integers(0, 37, (2000, 37))
    assert (whole.low, whole.high) == tuple(np.percentile(values[drawn].mean(axis=1), [2.5, 97.5]))


def test_marks_beyond_a_share_have_no_rule_of_three() -> None:
    marks = Marks("cider", ["a"] * 4, np.zeros(4), [1] * 4, is_share=False)
    assert dict(marks.figures())["all"].high == 0


def test_captions_are_searched_both_ways(write: Write, evaluated, tmp_path: Path) -> None:
    lettered(tmp_path, "abc")
    rows = [
        {"image": "a0.png", "captions": ["a one", "a two"]},
        {"image": "b1.png", "caption": "b"},
        {"image": "c2.png", "caption": "b wrong"},
    ]
    report = evaluated(write(*rows), ByRule(embeds=True))
    assert report.tasks["image to text"]["recall@1"].mean == pytest.approx(2 / 3)
    assert report.tasks["text to image"]["recall@1"].mean == pytest.approx(3 / 4)
    assert report.tasks["all"]["recall@5"].n == 7


def test_captions_want_their_library_before_anything_is_asked(write: Write, evaluated, monkeypatch) -> None:
    monkeypatch.setattr("quant.evaluation.scorers.captions.find_spec", lambda name: None)
    model = ByRule()
    with pytest.raises(MissingExtraError, match=r"pycocoevalcap, which is not here: pip install -e '.\[captions\]'"):
        evaluated(write({"image": "red.png", "caption": "red"}), model)
    assert model.asked == []


def test_searches_are_ranked_among_all_documents(write: Write, evaluated, tmp_path: Path) -> None:
    lettered(tmp_path, "aabc")
    rows = [
        {"query": "a", "relevant": {"a0.png": 2, "b2.png": 1}},
        {"image": "b2.png", "relevant": ["c3.png"], "task": "by image"},
        {"document": "a1.png"},
    ]
    report = evaluated(write(*rows), ByRule(embeds=True))
    # Documents in the order of the file, ties as they come: a0, b2, c3, a1. For "a": a0, a1, b2, c3.
    assert report.tasks["questions"]["recall@1"].mean == 0.5
    assert report.tasks["questions"]["ndcg@10"].mean == pytest.approx((2 + 1 / 2) / (2 + 1 / np.log2(3)))
    assert report.tasks["by image"]["recall@1"].mean == 0
    assert report.tasks["by image"]["recall@5"].mean == 1


def test_a_model_that_does_both_answers_questions_and_searches_by_vectors(write: Write, evaluated, tmp_path) -> None:
    lettered(tmp_path, "ab")
    both = ByRule(embeds=True, answers=True)
    assert evaluated(write(ASKED), both).tasks["all"].keys() == evaluated(write(ASKED), ByRule()).tasks["all"].keys()
    assert len(both.asked) == 1
    rows = [{"query": "a", "relevant": ["a0.png"]}, {"document": "b1.png"}]
    assert evaluated(write(*rows, name="searched.jsonl"), both).tasks["all"]["recall@1"].mean == 1
    assert len(both.asked) == 1


def test_labels_take_the_mean_of_their_templates(write: Write, evaluated, tmp_path: Path) -> None:
    lettered(tmp_path, "ab")
    rows = [{"image": "a0.png", "label": "a"}, {"image": "b1.png", "label": "b"}]
    file = write(*rows)
    assert evaluated(file, ByRule(embeds=True)).tasks["all"]["top-1"].mean == 1
    mixed = Options(templates=("c {}", "{} it", "{}"))  # one of three says nothing of the label
    assert evaluated(file, ByRule(embeds=True), mixed).tasks["all"]["top-1"].mean == 1
    with pytest.raises(QuantizationError, match=r"'a photo' has no {} for the label"):
        evaluated(file, ByRule(embeds=True), Options(templates=("a photo",)))
    with pytest.raises(QuantizationError, match="every label is 'a'"):
        evaluated(write(rows[0], name="one.jsonl"), ByRule(embeds=True))


def test_a_file_for_another_kind_of_model_is_named(write: Write, evaluated) -> None:
    with pytest.raises(QuantizationError, match=r"line 1 is of the format vqa, which wants a model that answers"):
        evaluated(write(ASKED), ByRule(embeds=True))
    with pytest.raises(QuantizationError, match="of the format search, which wants a model that embeds"):
        evaluated(write({"query": "a", "relevant": ["red.png"]}), ByRule())
    with pytest.raises(QuantizationError, match="line 1 shows 2 images; a model that embeds takes one"):
        evaluated(write({"image": ["red.png", "red.png"], "caption": "red"}), ByRule(embeds=True))


def test_the_page_escapes_what_a_model_says_and_draws_intervals(write: Write, evaluated) -> None:
    report = evaluated(write(ASKED), ByRule(lambda said: "<script>alert(1)</script>"))
    page = evaluation_page(report)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<svg") == sum(len(figures) for figures in report.tasks.values())
    assert json.loads(report.model_dump_json())["tasks"]["all"]["exact"]["n"] == 1
