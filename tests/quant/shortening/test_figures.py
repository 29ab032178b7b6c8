"""What is said of measured answers follows from them: means, losses, and who surely beats the uniform choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bundle.errors import QuantizationError
from quant.shortening.costs import Cost, Costs, costs_section, read_costs, write_costs
from quant.shortening.figures import Figure, figures_of
from quant.shortening.page import sentences_of, write_page
from quant.shortening.record import Answers, Record
from quant.shortening.ways import Lacking, Way
from runtime.turns import Quartiles

NUM = 40


def answers(way: Way | None, right: list[bool] | None, kl: float = 0.0) -> Answers:
    return Answers(way, list(range(NUM)), [2] * NUM, [kl] * NUM, [1.0] * NUM, right or [])


def flags(num_right: int) -> list[bool]:
    return [at < num_right for at in range(NUM)]


def record(*, has_accuracy: bool = True) -> Record:
    ways = [("uniform", 30, 0.3), ("good", 40, 0.1), ("same", 30, 0.3), ("bad", 10, 0.9)]
    return Record(
        "m",
        "questions",
        ["a", "b"] * (NUM // 2),
        answers(None, flags(NUM) if has_accuracy else None),
        [
            answers(Way("before", method, 0.5), flags(num_right) if has_accuracy else None, kl)
            for method, num_right, kl in ways
        ],
        [Lacking("after", "snapkv", "no queries")],
    )


def by_method(found: Record, task: str | None = None) -> dict[str, Figure]:
    return {figure.way.method: figure for figure in figures_of(found, "before", task)}


def test_right_answers_are_told_in_percent_and_losses_against_the_whole_prompt() -> None:
    found = by_method(record())
    assert (found["good"].value.mean, found["bad"].value.mean) == (100.0, 25.0)
    assert (found["good"].loss.mean, found["bad"].loss.mean) == (0.0, 75.0)


def test_a_method_is_held_against_the_uniform_choice_on_the_same_questions() -> None:
    found = by_method(record())
    assert {method: figure.verdict for method, figure in found.items()} == {
        "uniform": "",
        "good": "better",
        "same": "",
        "bad": "worse",
    }
    assert found["uniform"].behind is None
    behind = found["bad"].behind
    assert behind is not None
    assert behind.mean == 50.0


def test_where_no_answer_can_be_right_divergence_is_told_and_less_is_better() -> None:
    found = by_method(record(has_accuracy=False))
    assert found["good"].value.mean == pytest.approx(0.1)
    assert (found["good"].verdict, found["bad"].verdict) == ("better", "worse")


def test_a_task_counts_its_own_questions() -> None:
    found = by_method(record(), "a")
    assert found["bad"].value.n == NUM // 2


def test_what_is_inside_the_decoder_is_held_against_the_uniform_choice_before_it() -> None:
    measured = record()
    measured.ways.append(answers(Way("inside", "fastv", 0.5), flags(40)))
    (figure,) = figures_of(measured, "inside")
    assert figure.verdict == "better"


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record().write(tmp_path / "answers.json")
    assert Record.read(tmp_path / "answers.json") == record()


@pytest.mark.parametrize("text", ["", "{}", '{"model": "m"}', "[1]"])
def test_a_file_of_something_else_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(QuantizationError, match=r"other\.json holds no answers"):
        Record.read(path)
    with pytest.raises(QuantizationError, match=r"other\.json holds no costs"):
        read_costs(path)


def test_the_best_and_those_surely_worse_than_uniform_are_told_in_a_sentence() -> None:
    (sentence,) = sentences_of(record())
    assert "50% kept: least is lost by good, 0.0 points lost" in sentence
    assert "better than uniform: good; worse than uniform: bad" in sentence


def test_all_ways_that_lose_least_are_told() -> None:
    found = record()
    tied = replace(found.ways[1], way=Way("before", "as-good", 0.5))
    (sentence,) = sentences_of(replace(found, ways=[*found.ways, tied]))
    assert "least is lost by good and as-good, 0.0 points lost" in sentence


def test_a_page_shows_every_method_what_was_not_measured_and_what_is_saved(tmp_path: Path) -> None:
    half = Cost("dart", 0.5, Quartiles(40, 50, 60), prompt_tokens=100, cache_bytes=1 << 20)
    whole = Cost("all tokens", 1.0, Quartiles(90, 100, 110), prompt_tokens=200, cache_bytes=2 << 20)
    costs = [Costs("m", "first token about 4 images", "a machine", (whole, half))]
    written = write_page(tmp_path / "page.html", [record()], costs)
    page = written[0].read_text()
    for told in (
        "uniform",
        "good",
        "bad",
        "snapkv: no queries",
        "first token about 4 images",
        "0.50 of all",
        "1.0 MiB",
    ):
        assert told in page
    assert [path.name for path in written] == ["page.html", "page-m-before.png"]
    assert page.count('class="bad"') >= 1


def test_costs_are_read_as_they_were_written(tmp_path: Path) -> None:
    costs = [Costs("m", "asked", "machine", (Cost("all rows", 1.0, decode_tokens_s=Quartiles(1, 2, 3)),))]
    write_costs(tmp_path / "costs.json", costs)
    assert read_costs(tmp_path / "costs.json") == costs
    assert costs_section([]) == ""
