from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from bundle.errors import QuantizationError
from bundle.prompt import Placeholder, Turn
from quant.quality.evaluation import Evaluation, Labelled, PairedFlags, turns_of


@dataclass(frozen=True)
class Captioned:
    image: Image.Image
    caption: str


@dataclass(frozen=True)
class Asked:
    content: object
    task: str = "digit"
    answer: str = "7"
    images: tuple[Image.Image, ...] = ()

    def messages(self) -> list[dict[str, object]]:
        return [{"role": "user", "content": self.content}]

    def is_right(self, reply: str) -> bool:
        return reply == self.answer


def test_a_loss_is_positive_where_the_variant_is_worse() -> None:
    summary = PairedFlags(np.array([True, True, True, False]), np.array([True, False, False, False])).summary()
    assert (summary.n, summary.fp32, summary.quantized, summary.loss_points) == (4, 0.75, 0.25, 50.0)
    assert 0 <= summary.loss_low <= 50 <= summary.loss_high <= 100


def test_what_both_get_alike_adds_no_width_to_the_interval_but_excludes_no_rare_loss() -> None:
    flags = np.array([True, False] * 50)
    summary = PairedFlags(flags, flags).summary()
    # Rule of three: 100 samples without a loss exclude, at 95 %, losses above 3 in 100. Exact: 1 - 0.05^(1/100).
    assert (summary.loss_points, summary.loss_low, summary.loss_high) == (0, 0, 3.0)


def test_a_single_sample_excludes_nothing() -> None:
    assert PairedFlags(np.array([True]), np.array([True])).summary().loss_high == 100


def test_a_conversation_becomes_turns_with_images_in_their_places() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "Which?"}]
    assert turns_of(Asked(parts)) == [Turn("user", (Placeholder.IMAGE, "Which?"))]


def test_a_conversation_that_is_no_list_of_parts_is_refused() -> None:
    with pytest.raises(QuantizationError, match=r"task digit: .* no list of parts: 'Which"):
        turns_of(Asked("Which?"))


def test_samples_of_every_kind_are_counted() -> None:
    image = Captioned(Image.new("RGB", (1, 1)), "a")
    labelled = {"letter": Labelled(["a", "b"], [image] * 3), "case": Labelled(["a", "A"], [image])}
    evaluation = Evaluation(questions=[Asked([])] * 4, captions=[image] * 2, labelled=labelled)
    assert evaluation.num_samples == 10
