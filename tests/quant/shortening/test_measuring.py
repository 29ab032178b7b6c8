"""Every way that a bundle can do is measured on every question that it can say something of; the others say why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.directory import open_bundle
from quant.kv.table import POLICIES
from quant.quality.evaluation import Evaluation
from quant.shortening.measuring import measure_shortening
from quant.shortening.record import Record
from quant.shortening.ways import Way
from quant.visual_tokens.table import METHODS
from runtime.settings import RuntimeSettings


@dataclass(frozen=True)
class Asked:
    task: str
    images: Sequence[Image.Image]
    answer: str = "a b"

    def messages(self) -> Sequence[Mapping[str, object]]:
        parts: list[dict[str, str]] = [{"type": "image"} for _ in self.images]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": "what is it"}]}]

    def is_right(self, reply: str) -> bool:
        return reply == self.answer


@pytest.fixture(scope="module")
def measured(smolvlm_bundle: Path) -> Record:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8))
    evaluation = Evaluation(questions=[Asked("seen", [image]), Asked("read", [])], source="two questions")
    bundle = open_bundle(smolvlm_bundle)
    return measure_shortening(bundle, evaluation, [0.5], RuntimeSettings(intra_threads=1), lambda line: None)


def test_all_reducers_and_policies_that_the_bundle_can_do_are_measured(measured: Record) -> None:
    ways = {(answers.way.stage, answers.way.method) for answers in measured.ways if answers.way}
    lacking = {(each.stage, each.method) for each in measured.lacking}
    assert ways >= {("before", method) for method in METHODS}
    assert {method for stage, method in ways | lacking if stage == "after"} == set(POLICIES)
    assert not ways & lacking


def test_what_a_bundle_lacks_is_told_with_the_command_that_makes_it(measured: Record) -> None:
    (reason,) = {each.reason for each in measured.lacking if each.method == "fastv"}
    assert "--decoder-segments" in reason


def test_a_reducer_is_asked_about_images_alone_and_a_policy_about_all(measured: Record) -> None:
    before, after = measured.of(Way("before", "uniform", 0.5)), measured.of(Way("after", "uniform", 0.5))
    assert before is not None
    assert before.questions == [0]
    assert after is not None
    assert after.questions == [0, 1]


def test_the_whole_prompt_diverges_from_itself_by_nothing_and_half_of_it_does(measured: Record) -> None:
    assert measured.whole.kl == [0.0, 0.0]
    found = measured.of(Way("before", "random", 0.5))
    assert found is not None
    assert found.kl[0] > 0


def test_a_time_that_is_over_ends_the_questions_behind_the_second(smolvlm_bundle: Path) -> None:
    evaluation = Evaluation([Asked(f"read {at}", []) for at in range(4)], source="four", no_accuracy="none is right")
    said: list[str] = []
    settings = RuntimeSettings(intra_threads=1)
    record = measure_shortening(open_bundle(smolvlm_bundle), evaluation, [0.5], settings, said.append, most_s=0)
    assert record.tasks == ["read 0", "read 1"]
    assert record.whole.questions == [0, 1]
    assert not record.has_accuracy
    assert said[-1] == "2 of 4 questions were asked in 0 minutes"
