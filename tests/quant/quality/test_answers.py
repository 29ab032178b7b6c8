from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from bundle.image import TileLayout
from bundle.prompt import Prompt, Span
from quant.quality.answers import measure_answers
from quant.quality.gate import unmeasured_gates
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import Prefilled, SeenImages


def picture(width: int) -> Image.Image:
    return Image.new("RGB", (width, 1))


@dataclass(frozen=True)
class Asked:
    task: str
    answer: str
    images: Sequence[Image.Image] = field(default_factory=list)

    def messages(self) -> list[dict[str, object]]:
        parts = [*({"type": "image"} for _ in self.images), {"type": "text", "text": "Which?"}]
        return [{"role": "user", "content": parts}]

    def is_right(self, reply: str) -> bool:
        return reply == self.answer


class Parrot:
    """A vision-language model over two tokens, "a" and "b".

    It favours the first by a margin, plus `sight` times the width of its image; it always replies the same.
    """

    def __init__(self, reply: str = "", margin: float = 0.0, sight: float = 0.0, blur: float = 1.0) -> None:
        self.reply, self.margin, self.sight, self.blur = reply, margin, sight, blur

    def see(self, images: Sequence[Image.Image]) -> SeenImages:
        features = (np.array([[[image.width * self.blur, 1.0]]], np.float32) for image in images)
        return SeenImages((TileLayout(),) * len(images), tuple(features))

    def prompt_about(self, turns: object, seen: SeenImages) -> FilledPrompt:
        num_images = len(seen.features)
        spans = tuple(Span(at, at + 1, image=at, row=0) for at in range(num_images))
        ids = np.zeros(num_images + 1, np.int64)
        return FilledPrompt.of(Prompt(ids, spans, np.arange(len(ids)), len(ids), num_images), seen.features)

    def prefill(self, prompt: FilledPrompt, room_tokens: int) -> Prefilled:
        widths = sum(float(placed.rows[0, 0]) for placed in prompt.placed)
        logits = np.array([self.margin + self.sight * widths, 0], np.float32)
        return Prefilled(prompt, logits, prompt.num_tokens + room_tokens)

    def answer_ids(self, answer: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in answer] + [0]

    def forced_logits(self, prompt: Prefilled, answer_ids: Sequence[int]) -> np.ndarray:
        return np.tile(prompt.logits, (len(answer_ids), 1))

    def reply_ids(self, prompt: Prefilled, max_tokens: int) -> list[int]:
        return [ord(letter) - ord("a") for letter in self.reply][:max_tokens]

    def text_of(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(ord("a") + token_id) for token_id in token_ids)


def silent(_: str) -> None:
    pass


def test_accuracy_is_kept_per_task_and_for_all() -> None:
    questions = [Asked("digit", "a"), Asked("digit", "b"), Asked("colour", "a")]
    found = measure_answers(Parrot("a"), Parrot("b"), questions, silent)
    assert {name: (task.n, task.fp32, task.quantized) for name, task in found.tasks.items()} == {
        "digit": (2, 0.5, 0.5),
        "colour": (1, 1, 0),
        "all": (3, pytest.approx(2 / 3), pytest.approx(1 / 3)),
    }


def test_teacher_forcing_compares_every_answer_position() -> None:
    questions = [Asked("digit", "aa"), Asked("digit", "aaa")]
    found = measure_answers(Parrot(margin=np.log(3)), Parrot(margin=np.log(1 / 3)), questions, silent).teacher_forced
    assert found is not None
    assert (found.num_samples, found.num_tokens) == (2, 7)
    # Two coins, 3:1 against 1:3: KL = (3/4 - 1/4) ln 3 at every position, and the choices never agree.
    assert found.kl_mean == pytest.approx(0.5 * np.log(3))
    assert found.kl_p99 == pytest.approx(0.5 * np.log(3))
    assert found.top1_agreement == 0
    assert (found.num_clear_tokens, found.clear_agreement, found.clear_interval) == (7, 0, (0, 0))
    assert found.kl_interval == pytest.approx((found.kl_mean, found.kl_mean))  # all alike: no width
    assert found.top1_interval == (0, 0)
    # Every right token is the first: p falls from 3/4 to 1/4.
    assert found.delta_nll == pytest.approx(np.log(3))
    assert found.parent_nll == pytest.approx(np.log(4 / 3))


def test_tokens_that_are_nearly_as_likely_are_no_choice_to_agree_on() -> None:
    questions = [Asked("digit", "aa"), Asked("digit", "aaa")]
    pair = Parrot(margin=np.log(1.4)), Parrot(margin=np.log(1 / 1.4))
    measured = measure_answers(*pair, questions, silent)
    found = measured.teacher_forced
    assert found is not None
    assert (found.top1_agreement, found.num_clear_tokens, found.clear_agreement) == (0, 0, None)
    assert "clear_agreement" in {each.name for each in unmeasured_gates(measured)}


def test_one_question_has_no_interval() -> None:
    found = measure_answers(Parrot(), Parrot(), [Asked("digit", "aa")], silent).teacher_forced
    assert found is not None
    assert (found.kl_interval, found.top1_interval) == (None, None)


def test_replies_are_compared_token_by_token() -> None:
    questions = [Asked("word", "abba"), Asked("word", "abab")]
    same = measure_answers(Parrot("abba"), Parrot("abba"), questions, silent).replies
    other = measure_answers(Parrot("abba"), Parrot("abab"), questions, silent).replies
    assert same is not None
    assert other is not None
    assert (same.n, same.identical, same.first_divergence) == (2, 1, None)
    assert (other.n, other.identical, other.first_divergence) == (2, 0, 2)


def test_a_question_is_asked_about_the_image_of_another() -> None:
    questions = [Asked("size", "a", [picture(width)]) for width in (1, 2, 2)]
    found = measure_answers(Parrot(sight=1.0), Parrot(sight=0.5), questions, silent).image_sensitivity
    assert found is not None

    def kl(own: float, other: float) -> float:
        p, q = 1 / (1 + math.exp(-own)), 1 / (1 + math.exp(-other))
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    # The second question about the first's image; the third shows what the second shows, which tells nothing.
    assert found.n == 1
    assert found.fp32 == pytest.approx(kl(2, 1), rel=1e-5)
    assert found.quantized == pytest.approx(kl(1, 0.5), rel=1e-5)
    assert found.ratio == pytest.approx(kl(1, 0.5) / kl(2, 1), rel=1e-5)


def test_a_model_that_ignores_images_has_no_sensitivity() -> None:
    questions = [Asked("size", "a", [picture(width)]) for width in (1, 2, 3)]
    found = measure_answers(Parrot(sight=1.0), Parrot(sight=0.0), questions, silent).image_sensitivity
    assert found is not None
    assert (found.n, found.quantized, found.ratio) == (2, 0, 0)


def test_features_are_compared_image_by_image() -> None:
    questions = [Asked("size", "a", [picture(1), picture(4)]), Asked("size", "a", [picture(9)])]
    found = measure_answers(Parrot(), Parrot(blur=0.5), questions, silent).likenesses["image_features"]
    assert found.n == 3
    assert found.correlation == pytest.approx(1)
    assert found.spread == pytest.approx(0.5)
    assert found.cosine_mean < 1


def test_questions_without_images_leave_the_image_measures_out() -> None:
    found = measure_answers(Parrot(), Parrot(), [Asked("word", "a")] * 2, silent)
    assert found.image_sensitivity is None
    assert found.likenesses == {}


def test_a_parent_that_does_not_look_at_images_gives_no_ratio() -> None:
    questions = [Asked("size", "a", [picture(width)]) for width in (1, 2)]
    found = measure_answers(Parrot(), Parrot(sight=1.0), questions, silent).image_sensitivity
    assert found is not None
    assert (found.n, found.fp32, found.ratio) == (1, 0, None)


def test_where_nothing_is_right_or_wrong_no_accuracy_is_counted_and_few_replies_are_made() -> None:
    questions = [Asked("word", "ab") for _ in range(60)]
    found = measure_answers(Parrot("a"), Parrot("b"), questions, silent, has_accuracy=False)
    assert found.tasks == {}
    assert found.replies is not None
    assert (found.replies.n, found.replies.identical) == (20, 0)  # one of three, so that no more than 24 are made
    assert found.teacher_forced is not None
    assert (found.teacher_forced.num_samples, found.teacher_forced.num_tokens) == (60, 180)
