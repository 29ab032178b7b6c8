"""What `pocketvlm compression` asks: all of the questions, or tasks in turns where time may end before them."""

from __future__ import annotations

from commands.compression import _asked
from quant.quality.evaluation import Evaluation
from reference.real.held_out import held_out


def test_tasks_take_turns_where_not_every_question_may_be_asked() -> None:
    questions = [*held_out("colour", 2), *held_out("shape", 1)]
    asked = _asked(Evaluation(questions), replies=True, in_turns=True)
    assert [question.task for question in asked.questions] == ["colour", "shape", "colour"]
    assert list(_asked(Evaluation(questions), replies=True, in_turns=False).questions) == questions


def test_without_replies_nothing_is_right_or_wrong() -> None:
    evaluation = Evaluation(held_out("colour", 1))
    assert _asked(evaluation, replies=False, in_turns=False).no_accuracy
    assert not _asked(evaluation, replies=True, in_turns=False).no_accuracy
