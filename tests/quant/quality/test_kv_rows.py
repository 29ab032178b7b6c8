from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.directory import open_bundle
from bundle.errors import ParameterError
from bundle.golden import canary_image
from bundle.manifest import Manifest
from bundle.prompt import Placeholder, Turn
from quant.kv.table import POLICIES
from quant.quality.kv_rows import PolicyRows, measure_policies
from quant.quality.measures import kl_divergences
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import VisionLanguageRunner

TURNS = [Turn("user", (Placeholder.IMAGE, "What is this, and what stands beside it?"))]
ANSWER = [7, 9, 8, 11, 6]
OF_ONE_GROUP = [name for name, entry in POLICIES.items() if not entry.has_layer_budgets]


@pytest.fixture(scope="module")
def runner(smolvlm_bundle: Path) -> VisionLanguageRunner:
    return VisionLanguageRunner(open_bundle(smolvlm_bundle))


@pytest.fixture(scope="module")
def manifest(smolvlm_bundle: Path) -> Manifest:
    return open_bundle(smolvlm_bundle).manifest


@pytest.fixture(scope="module")
def prompt(runner: VisionLanguageRunner) -> FilledPrompt:
    return runner.prompt(TURNS, [canary_image()])


def answered(runner: VisionLanguageRunner, prompt: FilledPrompt, rows: PolicyRows | None) -> np.ndarray:
    return runner.forced_logits(runner.prefill(prompt, len(ANSWER), choose_rows=rows), ANSWER)


@pytest.mark.parametrize("policy", OF_ONE_GROUP)
def test_a_budget_of_one_changes_no_bit_and_a_smaller_one_costs_something(runner, manifest, prompt, policy) -> None:
    whole = answered(runner, prompt, None)
    rows = PolicyRows(manifest, policy, 1.0)
    np.testing.assert_array_equal(answered(runner, prompt, rows), whole)
    assert rows.rows == [prompt.num_tokens]
    rows = PolicyRows(manifest, policy, 0.3)
    small = answered(runner, prompt, rows)
    assert list(rows.rows) == [int(prompt.num_tokens * 0.3)]
    np.testing.assert_array_equal(small[0], whole[0])  # the first token follows the whole prompt
    assert np.abs(small[1:] - whole[1:]).max() > 1e-4


def test_the_same_request_loses_the_same_rows(runner, manifest, prompt) -> None:
    first, second = (answered(runner, prompt, PolicyRows(manifest, "random", 0.3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("policy", "budget", "said"),
    [
        ("best", 0.5, "must be one of random, uniform"),
        ("snapkv", 0.0, "above 0 and at most 1"),
        ("snapkv", 1.5, "above 0 and at most 1"),
        ("pyramidkv", 0.5, "one length group .* --length-groups, or take one of random, uniform"),
    ],
)
def test_what_a_bundle_cannot_do_is_refused(manifest, policy: str, budget: float, said: str) -> None:
    with pytest.raises(ParameterError) as caught:
        PolicyRows(manifest, policy, budget)
    assert re.search(said, str(caught.value))


def test_a_budget_that_keeps_no_row_is_refused(runner, manifest, prompt) -> None:
    with pytest.raises(ParameterError, match="keeps no row"):
        answered(runner, prompt, PolicyRows(manifest, "knorm", 1e-4))


@dataclass(frozen=True)
class Asked:
    """A question about an image, whose right reply is what the model says with all rows."""

    answer: str
    reply: str
    images: tuple[Image.Image, ...] = (canary_image(),)
    task: str = "any"

    def messages(self) -> list[dict[str, object]]:
        return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]

    def is_right(self, reply: str) -> bool:
        return reply == self.reply


def test_policies_are_measured_beside_the_model_with_all_rows(runner, manifest) -> None:
    prompt = runner.prompt([Turn("user", (Placeholder.IMAGE, "What is this?"))], [canary_image()])
    ids = runner.answer_ids("a red square")
    room = len(ids) + 8
    questions = [Asked("a red square", runner.text_of(runner.reply_ids(runner.prefill(prompt, room), room)))]
    asked = [PolicyRows(manifest, "snapkv", 1.0), PolicyRows(manifest, "uniform", 0.2)]
    whole, few = measure_policies(runner, questions, asked, lambda line: None)
    assert (whole.teacher_forced.kl_mean, whole.replies.identical) == (0, 1)
    assert (whole.tasks["all"].fp32, whole.tasks["all"].quantized) == (1, 1)
    logits = [
        runner.forced_logits(runner.prefill(prompt, len(ids), choose_rows=rows), ids) for rows in (None, asked[1])
    ]
    assert few.teacher_forced.kl_mean == pytest.approx(kl_divergences(*logits).mean(), rel=1e-9)
    assert few.teacher_forced.kl_mean > 1e-6
